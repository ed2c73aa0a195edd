//! The command line. All output to a person goes through [`say`].

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::prelude::{Long, Short, Value};

use crate::board::clock::Clock;
use crate::board::config::{self, Config};
use crate::board::name::{SYSFS, Template};
use crate::link::identity::Identity;
use crate::local::status::Status;
use crate::paths;

/// A command: its name, its usage, its options, and its description: the first
/// line for the list of all commands, the rest for its own help.
struct Command(
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static str,
);

const COMMANDS: [Command; 8] = [
    Command(
        "run",
        "run",
        &[],
        "runs the agent in the foreground
It ends at SIGTERM, and leaves the pods running. Services for it are in scripts/init.
",
    ),
    Command(
        "join",
        "join URL --token TOKEN [--node NAME]",
        &["token", "node"],
        "joins the cloud at mqtts:// or https://HOST[:PORT]
  --token TOKEN   from `edge-cloud token create`
  --node NAME     the node's name or its template, if the config has none
The agent has to be restarted afterwards, if it runs.
",
    ),
    Command(
        "status",
        "status [--json]",
        &["json"],
        "shows the node, its roots, conditions, pods and memory
",
    ),
    Command(
        "pods",
        "pods [--json]",
        &["json"],
        "shows the pods only
",
    ),
    Command(
        "logs",
        "logs [-f] [--tail BYTES] POD [-c CONTAINER]",
        &["follow", "tail", "container"],
        "shows the output of a container
POD is NAME, or NAMESPACE/NAME.
  -f, --follow               goes on until the container has ended for good or the pod is gone
  --tail BYTES               only the end
  -c, --container CONTAINER  which, when the pod has several
",
    ),
    Command(
        "check",
        "check [--json]",
        &["json"],
        "says what this board lacks, and how to repair it
It looks only, and needs no agent. Exit code 1 when pods cannot run; warnings do not count.
",
    ),
    Command(
        "reset",
        "reset [--yes]",
        &["yes"],
        "stops all containers, wipes identity and state
The agent must not run. It asks first; --yes is the answer when there is no terminal to ask at.
",
    ),
    Command(
        "version",
        "version",
        &[],
        "shows the version
",
    ),
];
const HELP_TAIL: &str = "
options:
  --config FILE   default /etc/edge-min/edge-min.toml
  -h, --help      this text; after a command, that of the command

exit codes: 0 done, 1 failed, 2 wrong usage, 3 the agent does not answer
";
const EXIT_USAGE: u8 = 2;
const EXIT_NO_AGENT: u8 = 3;

/// Message of a failed command, with its exit code.
struct Failure(u8, String);

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(1, text)
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self(EXIT_USAGE, error.to_string() + "; see edge-min --help")
    }
}

#[derive(Default)]
struct Options {
    config: Option<PathBuf>,
    words: Vec<String>,
    json: bool,
    follow: bool,
    yes: bool,
    help: bool,
    token: Option<String>,
    node: Option<String>,
    container: Option<String>,
    tail: Option<u64>,
    /// Options that not every command takes, in the order given.
    given: Vec<&'static str>,
}

impl Options {
    fn give(&mut self, option: &'static str) -> bool {
        self.given.push(option);
        true
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    match options().and_then(|options| command(&options)) {
        Ok(code) => code,
        Err(Failure(code, text)) => {
            // All commands need root.
            let may_not = code != EXIT_USAGE && !nix::unistd::geteuid().is_root();
            let hint = if may_not { "; run it as root" } else { "" };
            // If stderr is closed, the message is lost.
            writeln!(io::stderr(), "edge-min: {text}{hint}").ok();
            ExitCode::from(code)
        }
    }
}

/// Writes to stdout; a reader that has closed the pipe is not an error.
fn say(text: &str) {
    io::stdout().write_all(text.as_bytes()).ok();
}

fn options() -> Result<Options, Failure> {
    let mut options = Options::default();
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("config") => options.config = Some(PathBuf::from(parser.value()?)),
            Long("help") | Short('h') => options.help = true,
            Long("version") => options.words = vec!["version".to_owned()],
            Long("json") => options.json = options.give("json"),
            Long("follow") | Short('f') => options.follow = options.give("follow"),
            Long("yes") => options.yes = options.give("yes"),
            Long("token") => {
                options.give("token");
                options.token = Some(text(parser.value()?)?);
            }
            Long("node") => {
                options.give("node");
                options.node = Some(text(parser.value()?)?);
            }
            Long("container") | Short('c') => {
                options.give("container");
                options.container = Some(text(parser.value()?)?);
            }
            Long("tail") => {
                options.give("tail");
                let bytes = text(parser.value()?)?;
                let bytes = bytes
                    .parse()
                    .map_err(|_| Failure(EXIT_USAGE, "--tail: a number of bytes".to_owned()))?;
                options.tail = Some(bytes);
            }
            Value(word) => options.words.push(text(word)?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn text(word: std::ffi::OsString) -> Result<String, Failure> {
    word.into_string()
        .map_err(|_| Failure(EXIT_USAGE, "an argument is not UTF-8".to_owned()))
}

fn command(options: &Options) -> Result<ExitCode, Failure> {
    let mut words: Vec<&str> = options.words.iter().map(String::as_str).collect();
    let asked = options.help || words.first() == Some(&"help");
    words.retain(|word| *word != "help" || !asked);
    let known = COMMANDS
        .iter()
        .find(|command| Some(&command.0) == words.first());
    if asked {
        say(&known.map_or_else(help, help_of));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(Command(name, _, takes, _)) = known
        && let Some(odd) = options.given.iter().find(|given| !takes.contains(given))
    {
        let text = [
            "--",
            odd,
            " is not for `",
            name,
            "`; see edge-min ",
            name,
            " --help",
        ];
        return Err(Failure(EXIT_USAGE, text.concat()));
    }
    match words.as_slice() {
        ["run"] => {
            crate::logger::init();
            crate::sys::ignore_for_this_process_only();
            // The umask of init may differ: others may read volumes, and only root writes state.
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            crate::driver::run(load(options)?)?;
        }
        ["join", url] => join(options, url)?,
        ["status"] => {
            let (json, status) = status(options)?;
            say(&if options.json {
                json
            } else {
                status.to_string()
            });
        }
        ["pods"] => {
            let (_, status) = status(options)?;
            let json = || serde_json::to_string(&status.pods).unwrap_or_default() + "\n";
            say(&if options.json {
                json()
            } else {
                status.pods_table()
            });
        }
        ["logs", pod] => logs(options, pod)?,
        ["check"] => return check(options),
        ["reset"] => reset(options)?,
        ["version"] => say(&["edge-min ", crate::driver::VERSION, "\n"].concat()),
        [] => return Err(Failure(EXIT_USAGE, ["no command\n\n", &help()].concat())),
        [word, ..] => {
            let text = match known {
                Some(command) => ["`", word, "`: wrong arguments\n\n", &help_of(command)].concat(),
                None => ["`", word, "`: unknown command; see edge-min --help"].concat(),
            };
            return Err(Failure(EXIT_USAGE, text));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn help() -> String {
    let mut text = "edge-min: a Kubernetes-managed node that keeps working alone\n\n\
        usage: edge-min [--config FILE] COMMAND\n\ncommands:\n"
        .to_owned();
    for Command(_, usage, _, about) in &COMMANDS {
        let first = about.lines().next().unwrap_or_default();
        let pad = " ".repeat(46_usize.saturating_sub(usage.len()));
        text += &["  ", usage, &pad, first, "\n"].concat();
    }
    text + HELP_TAIL
}

fn help_of(command: &Command) -> String {
    let Command(_, usage, _, about) = command;
    [
        "usage: edge-min [--config FILE] ",
        usage,
        "\n\n",
        about,
        HELP_TAIL,
    ]
    .concat()
}

fn load(options: &Options) -> Result<Config, Failure> {
    let file = options
        .config
        .clone()
        .unwrap_or_else(|| PathBuf::from(paths::CONFIG_DEFAULT));
    config::load(&file).map_err(|error| {
        let mut text = error.to_string();
        if !file.exists() {
            text += "; write it (`version = 1` alone will do), or name another with --config";
        }
        text.into()
    })
}

fn join(options: &Options, url: &str) -> Result<(), Failure> {
    let usage = |text: &str| Failure(EXIT_USAGE, text.to_owned());
    let token = options
        .token
        .as_deref()
        .ok_or_else(|| usage("join: --token is missing"))?;
    let config = load(options)?;
    let template = match &options.node {
        Some(node) => {
            Some(Template::parse(node).map_err(|reason| usage(&["--node: ", &reason].concat()))?)
        }
        None => config.node,
    };
    let template =
        template.ok_or_else(|| usage("join: --node is missing, and the config has no node"))?;
    let node = template.resolve(Path::new(SYSFS))?;
    let made = std::fs::create_dir_all(&config.state_dir);
    made.map_err(|error| {
        [
            &config.state_dir.to_string_lossy(),
            ": ",
            &error.to_string(),
        ]
        .concat()
    })?;
    let clock = Clock::open(&config.state_dir);
    let before = Identity::load(&config.state_dir).ok().flatten();
    let (identity, unix_s) =
        crate::link::join::join(url, token, &node, &config.state_dir, clock.clone())
            .map_err(|error| error.to_string())?;
    clock.confirm(unix_s);
    say(&["joined as ", &identity.node, "\n"].concat());
    if let Some(Identity { node: old, .. }) = before.filter(|before| before.node != node) {
        say(&[
            "this board was ",
            &old,
            " before: `edge-cloud node delete ",
            &old,
            "`\n",
        ]
        .concat());
    }
    if let Some(other) = config.cloud.filter(|cloud| cloud != url) {
        say(&[
            "the config sends the agent to ",
            &other,
            ": change or remove its `cloud`\n",
        ]
        .concat());
    }
    Ok(())
}

fn request(config: &Config, target: &str) -> Result<io::BufReader<UnixStream>, Failure> {
    let socket = paths::agent_socket(&config.run_dir);
    let failed = |error: io::Error| {
        let denied = error.kind() == io::ErrorKind::PermissionDenied;
        let text = [
            "the agent does not answer at ",
            &socket.to_string_lossy(),
            ": ",
            &error.to_string(),
            if denied {
                ""
            } else {
                "; is `edge-min run` running?"
            },
        ];
        Failure(EXIT_NO_AGENT, text.concat())
    };
    let mut stream = UnixStream::connect(&socket).map_err(failed)?;
    stream
        .write_all(["GET ", target, " HTTP/1.0\r\n\r\n"].concat().as_bytes())
        .map_err(failed)?;
    let mut reader = io::BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).map_err(failed)?;
    let found = line.contains(" 200 ");
    while reader.read_line(&mut line).map_err(failed)? > 2 {}
    if !found {
        let mut text = String::new();
        reader.read_to_string(&mut text).map_err(failed)?;
        return Err(text.trim().to_owned().into());
    }
    Ok(reader)
}

fn status(options: &Options) -> Result<(String, Status), Failure> {
    let mut json = String::new();
    let mut reader = request(&load(options)?, "/v1/status")?;
    reader
        .read_to_string(&mut json)
        .map_err(|error| error.to_string())?;
    let status = serde_json::from_str(&json)
        .map_err(|error| ["the agent's answer: ", &error.to_string()].concat())?;
    Ok((json, status))
}

fn logs(options: &Options, pod: &str) -> Result<(), Failure> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let mut target = [
        "/v1/logs/",
        namespace,
        "/",
        name,
        "/",
        options.container.as_deref().unwrap_or("-"),
        "?",
    ]
    .concat();
    if let Some(bytes) = options.tail {
        target += &["tail=", &bytes.to_string(), "&"].concat();
    }
    if options.follow {
        target += "follow=1";
    }
    let mut reader = request(&load(options)?, &target)?;
    match io::copy(&mut reader, &mut io::stdout()) {
        // The reader has closed the pipe, for example `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(["the log broke off: ", &error.to_string()].concat().into()),
        Ok(_) => Ok(()),
    }
}

fn check(options: &Options) -> Result<ExitCode, Failure> {
    // The check must also work without a config.
    let report = match load(options) {
        Ok(config) => crate::local::check::check(&Ok(config)),
        Err(Failure(_, text)) => crate::local::check::check(&Err(text)),
    };
    let json = || serde_json::to_string(&report).unwrap_or_default() + "\n";
    say(&if options.json {
        json()
    } else {
        report.to_string()
    });
    Ok(if report.passes() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn reset(options: &Options) -> Result<(), Failure> {
    let config = load(options)?;
    let alone = crate::storage::lock::take(&config.state_dir, &config.run_dir)?;
    let running = crate::local::reset::running(&config)?;
    let containers = match running {
        1 => "1 container".to_owned(),
        count => [&count.to_string(), " containers"].concat(),
    };
    let records = crate::local::reset::unsent(&config, &alone);
    let state = config.state_dir.to_string_lossy().into_owned();
    if !options.yes {
        if !io::stdin().is_terminal() {
            let words = [
                "reset: nobody can be asked here; --yes wipes ",
                &records,
                " too",
            ];
            return Err(Failure(EXIT_USAGE, words.concat()));
        }
        say(&[
            "This stops ",
            &containers,
            ", and wipes identity, desired state, images and ",
            &records,
            " in ",
            &state,
            ".\nThe node must join again. Type `yes` to go on: ",
        ]
        .concat());
        io::stdout().flush().ok();
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|error| error.to_string())?;
        if answer.trim() != "yes" {
            return Err("nothing was changed".to_owned().into());
        }
    }
    crate::local::reset::reset(&config, &alone)?;
    say(&[
        "reset: ",
        &containers,
        " stopped, ",
        &records,
        " wiped, ",
        &state,
        " is empty but for the preload folder\n",
    ]
    .concat());
    Ok(())
}
