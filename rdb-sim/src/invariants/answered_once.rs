//! A request id has one answer, however often and wherever the request is repeated.

use std::collections::BTreeMap;

/// Its name.
pub const NAME: &str = "request ids answered once";

/// The versions that writes with request ids came back with.
#[derive(Default)]
pub struct Answers(BTreeMap<Vec<u8>, String>);

impl Answers {
    /// A write with this request id was answered with this.
    ///
    /// # Errors
    /// It was answered with something else before.
    pub fn seen(&mut self, request_id: &[u8], answer: String) -> Result<(), String> {
        let known = self
            .0
            .entry(request_id.to_vec())
            .or_insert_with(|| answer.clone());
        if *known == answer {
            return Ok(());
        }
        Err(format!(
            "request {} was answered with {known}, and then with {answer}",
            request_id.escape_ascii()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_answers_are_seen() {
        let mut answers = Answers::default();
        answers.seen(b"a", "version 4".into()).unwrap();
        answers.seen(b"a", "version 4".into()).unwrap();
        answers.seen(b"b", "version 5".into()).unwrap();
        assert!(answers.seen(b"a", "version 5".into()).is_err());
    }
}
