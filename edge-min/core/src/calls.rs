//! Calls of the cloud and of people on the board: which there are, what they are answered with, and
//! which log is meant. The stream of a call is the session's; reading a log is the shell's.

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use edge_proto::call::{
    CODE_ARGUMENTS, CODE_UNKNOWN_METHOD, LogsRequest, METHOD_LOGS, METHOD_RENEW,
};
use edge_proto::key::Uid;
use edge_proto::object::{ContainerState, PodStatus};

/// The code of a call's result, and the reason for the caller.
pub type Refusal = (u32, String);

/// What the cloud asks for.
pub(crate) enum Call {
    /// Output of a container.
    Logs(LogsRequest),
    /// The end of the certificate that the session lives with.
    Certificate {
        /// A renewal is asked for, too.
        renew: bool,
    },
}

/// What a call is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These bytes alone.
    Bytes(Vec<u8>),
    /// The output of a container, as asked for.
    Log(LogsRequest, Log),
}

/// The log of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Pod.
    pub uid: Uid,
    /// Name in the pod; never empty.
    pub container: String,
    /// Nothing more will be written to it: the container has ended for good.
    pub over: bool,
}

impl Call {
    /// # Errors
    /// The method is unknown, or the arguments are not its own.
    pub(crate) fn read(method: u16, args: &[u8]) -> Result<Self, Refusal> {
        match method {
            METHOD_LOGS => match LogsRequest::decode(args) {
                Ok(request) => Ok(Self::Logs(request)),
                Err(error) => Err((CODE_ARGUMENTS, error.to_string())),
            },
            METHOD_RENEW => Ok(Self::Certificate {
                renew: args.is_empty(),
            }),
            _ => Err((
                CODE_UNKNOWN_METHOD,
                "this agent does not know the call; upgrade it".to_string(),
            )),
        }
    }
}

/// The log of a container of a pod; an empty name is the only one.
///
/// # Errors
/// For a person.
pub(crate) fn find_log(
    mut statuses: impl Iterator<Item = PodStatus>,
    (namespace, pod, container): (&str, &str, &str),
) -> Result<Log, String> {
    let status = statuses.find(|status| status.namespace == namespace && status.name == pod);
    let status =
        status.ok_or_else(|| ["no pod ", namespace, "/", pod, " on this node"].concat())?;
    let all = status.containers.as_slice();
    let found = match (container, all) {
        ("", [only]) => Some(only),
        (name, all) => all.iter().find(|one| one.name == name),
    };
    let Some(found) = found else {
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        return Err(["choose a container: ", &names.join(", ")].concat());
    };
    Ok(Log {
        uid: status.uid,
        container: found.name.clone(),
        over: matches!(found.state, ContainerState::Terminated { .. }),
    })
}

#[cfg(test)]
mod tests {
    use edge_proto::object::ContainerStatus;

    use super::*;

    #[test]
    fn a_call_is_known_or_refused() {
        let request = LogsRequest {
            pod: "web".into(),
            ..LogsRequest::default()
        };
        let logs = Call::read(METHOD_LOGS, &request.encode());
        assert!(matches!(logs, Ok(Call::Logs(read)) if read == request));
        for (args, wanted) in [(&[][..], true), (&[0], false)] {
            let call = Call::read(METHOD_RENEW, args);
            assert!(matches!(call, Ok(Call::Certificate { renew }) if renew == wanted));
        }
        let code = |method, args| Call::read(method, args).err().map(|(code, _)| code);
        assert_eq!(code(METHOD_LOGS, &[0xff]), Some(CODE_ARGUMENTS));
        assert_eq!(code(99, &[]), Some(CODE_UNKNOWN_METHOD));
    }

    #[test]
    fn a_log_is_found_by_names_and_the_only_one_without() {
        let container = |name: &str, state| ContainerStatus {
            name: name.into(),
            state,
            ..ContainerStatus::default()
        };
        let ended = ContainerState::Terminated {
            exit_code: Some(0),
            reason: "Completed".into(),
        };
        let pod = |name: &str, containers| PodStatus {
            uid: Uid([7; 16]),
            namespace: "toll".into(),
            name: name.into(),
            containers,
            ..PodStatus::default()
        };
        let runs = || container("main", ContainerState::Running { pid: 1 });
        let pods = [
            pod("one", Vec::from([runs()])),
            pod("two", Vec::from([runs(), container("side", ended)])),
        ];
        let log = |pod, container| {
            find_log(pods.iter().cloned(), ("toll", pod, container))
                .map(|log| (log.container, log.over))
        };
        assert_eq!(log("one", ""), Ok(("main".into(), false)));
        assert_eq!(log("two", "main"), Ok(("main".into(), false)));
        assert_eq!(log("two", "side"), Ok(("side".into(), true)));
        let choose = Err("choose a container: main, side".into());
        assert_eq!(log("two", ""), choose);
        assert_eq!(log("two", "other"), choose);
        assert_eq!(log("gone", ""), Err("no pod toll/gone on this node".into()));
    }
}
