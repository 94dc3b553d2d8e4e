//! Switching a namespace's mode, and watching how far that is.
//!
//! Owns nothing but the request and the reading of the progress. A switch that is under way needs no
//! client: one that goes away changes nothing.

use crate::call::Call;
use crate::client::Client;
use crate::error::{ClientError, ErrorKind};
use rdb_proto::raft;
use tonic::Streaming;

const SWITCHING: &str = "switching a mode";

/// The progress of a switch, to its end.
#[derive(Debug)]
pub struct ModeChanges(Streaming<raft::ModeChange>);

impl ModeChanges {
    /// What is new; `None`: it has ended.
    ///
    /// # Errors
    /// The switch was given up (`SWITCH_ABORTED`), or it is not watched any more.
    pub async fn next(&mut self) -> Result<Option<raft::ModeChange>, ClientError> {
        self.0.message().await.map_err(|status| {
            let mut error = ClientError::of_stream(SWITCHING, &status);
            if error.reason.is_none() || error.kind == ErrorKind::Broken {
                error.message.push_str(
                    "; the switch was asked for and goes on: `flaredb ns modes` shows where it is",
                );
            }
            error
        })
    }
}

impl Client {
    /// Switches a namespace's mode, cancels a switch, or says what one would do. Waits as long as it takes
    /// where the request says so; the call's time is for the asking.
    ///
    /// # Errors
    /// It was refused, or no store could be asked. One whose outcome is unknown may be asked for again:
    /// what is under way already is joined.
    pub async fn update_mode(
        &self,
        request: raft::UpdateNamespaceModeRequest,
    ) -> Result<ModeChanges, ClientError> {
        let name = request.namespace.clone();
        let call = if request.dry_run {
            Call::read(SWITCHING, &name, None)
        } else {
            Call::anonymous(SWITCHING, &name)
        };
        self.raft(call, request, async |mut client, request| {
            client.update_namespace_mode(request).await
        })
        .await
        .map(ModeChanges)
    }
}
