//! No task of a store panics: what comes from outside is answered, and what must not be is not.
//!
//! A panic inside a task is caught by the runtime and would go unseen; so this listens where panics are
//! announced, on the thread that runs the simulation.

use std::cell::RefCell;
use std::sync::Once;

/// Its name.
pub const NAME: &str = "no panic";

thread_local! {
    /// What was announced since [`listen`]; none: this thread runs no simulation.
    static HEARD: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Begins to listen on this thread. Other threads' panics are announced as ever.
pub fn listen() {
    HOOK.call_once(|| {
        let announce = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let heard = HEARD.with_borrow_mut(|heard| match heard {
                Some(heard) => {
                    heard.push(panic.to_string());
                    true
                }
                None => false,
            });
            if !heard {
                announce(panic);
            }
        }));
    });
    HEARD.set(Some(Vec::new()));
}

/// Ends listening: what was announced.
pub fn heard() -> Vec<String> {
    HEARD.take().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_heard_where_somebody_listens() {
        listen();
        let caught = std::panic::catch_unwind(|| panic!("a task ends"));
        assert!(caught.is_err());
        let heard = heard();
        assert_eq!(heard.len(), 1);
        assert!(heard[0].contains("a task ends"));
    }
}
