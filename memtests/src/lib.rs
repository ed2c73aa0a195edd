//! The promises of edge-min as tests. This library provides the gate that they use: a real
//! edge-cloud, a real agent that joined it, real pods, each in a folder of its own.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

pub mod blocklog;
pub mod board;
pub mod broker;
mod host;
pub mod large_image;
pub mod measure;
pub mod ports;
pub mod qmp;
pub mod records;
pub mod scenario;
pub mod tls;
pub mod wan;

use broker::Broker;
use host::{kill, make_image, remove_cgroups, text, wrapped};
use measure::Proxy;
use ports::Port;
use wan::Wan;

pub use host::{program, root};

/// Timeout for any state to be reached; after it a test fails. A busy host must reach the state, too.
pub const STATE_TIMEOUT: Duration = Duration::from_secs(300);
/// Interval of polling a state.
const POLL: Duration = Duration::from_millis(20);

/// One edge-cloud with one gate.
pub struct Gate {
    dir: PathBuf,
    port: Port,
    program: PathBuf,
    proxy: Option<Proxy>,
    broker: Option<Broker>,
    wan: Option<Wan>,
    wrapper: Vec<String>,
    cloud_args: Vec<String>,
    cloud: Option<Child>,
    agent: Option<Child>,
}

/// Options of a gate.
pub struct Setup {
    /// The agent; `None` is the one that `cargo build` created beside this program.
    pub agent: Option<PathBuf>,
    /// The manifests that it starts with.
    pub manifests: String,
    /// MQTT keepalive.
    pub keepalive: Duration,
    /// Further lines of the agent's config.
    pub config: String,
    /// The link goes through a [`Proxy`] that counts its bytes.
    pub counted: bool,
    /// The link goes through an external [`Broker`], and the join is by HTTPS.
    pub broker: Option<BrokerCa>,
    /// Further arguments of `edge-cloud serve`.
    pub cloud: Vec<String>,
    /// Name of an image with busybox in the preload folder.
    pub image: Option<&'static str>,
    /// Name of the node, or its template.
    pub node: &'static str,
    /// The agent joins by itself, with a token in its image.
    pub joins_itself: bool,
    /// Command that runs the agent: a program with its arguments.
    pub wrapper: Vec<String>,
    /// The network link between agent and cloud; `None` is this host's own loopback.
    pub wan: Option<Wan>,
    /// All files of agent and cloud are in memory: other writers to the disk of this host delay
    /// nothing.
    pub in_memory: bool,
}

/// CA of a broker's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokerCa {
    /// edge-cloud's own CA.
    Own,
    /// Another one, which edge-cloud gets by an argument.
    Other,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            agent: None,
            manifests: String::new(),
            keepalive: Duration::from_secs(5),
            config: String::new(),
            counted: false,
            broker: None,
            cloud: Vec::new(),
            image: None,
            node: "gate",
            joins_itself: false,
            wrapper: Vec::new(),
            wan: None,
            in_memory: false,
        }
    }
}

impl Gate {
    /// A gate that has joined, with these manifests.
    ///
    /// # Errors
    /// Everything that cannot be started.
    pub fn start(manifests: &str) -> Result<Self> {
        Self::set_up(Setup {
            manifests: manifests.to_owned(),
            ..Setup::default()
        })
    }

    /// A gate with these options that has joined.
    ///
    /// # Errors
    /// Everything that cannot be started.
    pub fn set_up(setup: Setup) -> Result<Self> {
        static GATES: AtomicU32 = AtomicU32::new(0);
        let (name, dir) = loop {
            let number = GATES.fetch_add(1, Ordering::Relaxed);
            let name = format!("edge-min-test-{}-{number}", std::process::id());
            let dir = std::env::temp_dir().join(&name);
            match fs::create_dir(&dir) {
                Ok(()) => break (name, dir),
                // Left by a killed process with the same number.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        };
        let tmpfs = |at: &Path| text(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(at));
        if setup.in_memory {
            tmpfs(&dir)?;
        }
        fs::create_dir_all(dir.join("manifests"))?;
        fs::create_dir_all(dir.join("state/preload"))?;
        fs::create_dir_all(dir.join("run"))?;
        // As on a board: volatile files must not cost flash.
        tmpfs(&dir.join("run"))?;
        if let Some(image) = setup.image {
            make_image(&dir.join("state/preload/image"), image)?;
        }
        let port = Port::reserve()?;
        let host = setup.wan.as_ref().map_or("localhost", |_| wan::CLOUD);
        let broker_port = setup.broker.map(|_| Port::reserve()).transpose()?;
        let link_port = broker_port.as_ref().unwrap_or(&port).number();
        let proxy = setup.counted.then(|| Proxy::start(link_port)).transpose()?;
        let entrance = proxy.as_ref().map_or(link_port, Proxy::port);
        // A gate behind a broker gets its address by the join, unless the config moves the link.
        let joins = match setup.broker.is_some() {
            true => format!("https://localhost:{}", port.number()),
            false => format!("mqtts://{host}:{entrance}"),
        };
        let url = match setup.broker.is_some() && !setup.counted {
            true => joins.clone(),
            false => format!("mqtts://{host}:{entrance}"),
        };
        let token_file = dir.join("token");
        let token_line = match setup.joins_itself {
            true => format!("token-file = \"{}\"\n", token_file.display()),
            false => String::new(),
        };
        let config = format!(
            "version = 1\nnode = \"{3}\"\ncloud = \"{url}\"\n{token_line}\
             state-dir = \"{0}/state\"\nrun-dir = \"{0}/run\"\ncgroup = \"{name}\"\n\
             keepalive-ms = {1}\n{2}",
            dir.display(),
            setup.keepalive.as_millis(),
            setup.config,
            setup.node,
        );
        fs::write(dir.join("edge-min.toml"), config)?;
        let mut gate = Self {
            dir,
            port,
            program: setup.agent.map_or_else(|| program("edge-min"), Ok)?,
            proxy,
            broker: None,
            wan: setup.wan,
            wrapper: setup.wrapper,
            cloud_args: setup.cloud,
            cloud: None,
            agent: None,
        };
        gate.manifests(&setup.manifests)?;
        if let Some(port) = broker_port {
            let dir = gate.dir.join("broker");
            gate.broker_config(&dir, port.number())?;
            if setup.broker == Some(BrokerCa::Other) {
                let other = gate.certify_broker("other-ca")?.join("ca.crt");
                gate.cloud_args.push("--broker-ca".to_owned());
                gate.cloud_args.push(other.display().to_string());
            }
            gate.broker.insert(Broker::new(dir, port)?).start()?;
        }
        gate.start_cloud()?;
        let token = gate.cloud_text(&["token", "create"])?;
        if setup.joins_itself {
            fs::write(token_file, token)?;
        } else {
            text(&mut gate.agent_command(&["join", &joins, "--token", token.trim()])?)?;
        }
        gate.start_agent()?;
        Ok(gate)
    }

    /// Replaces the manifests.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn manifests(&self, manifests: &str) -> Result<()> {
        self.manifest("all.yaml", manifests)
    }

    /// Replaces one file of the manifests. [`Self::manifests`] writes `all.yaml`.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn manifest(&self, name: &str, text: &str) -> Result<()> {
        let staged = self.dir.join(name);
        fs::write(&staged, text)?;
        Ok(fs::rename(staged, self.dir.join("manifests").join(name))?)
    }

    /// Received bytes of large objects.
    #[must_use]
    pub fn fetched(&self) -> u64 {
        let objects = fs::read_dir(self.state_dir().join("objects"));
        let entries = objects.into_iter().flatten().flatten();
        let bytes = entries.filter_map(|entry| entry.metadata().ok());
        bytes.map(|metadata| metadata.len()).sum()
    }

    /// The gate's own folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Content of edge-cloud's registry: one value, and the changes since, a line each.
    ///
    /// # Errors
    /// The file is missing or incomplete.
    pub fn registry(&self) -> Result<Value> {
        let text = fs::read_to_string(self.dir.join("cloud/nodes.json"))?;
        let mut lines = text.lines();
        let mut registry: Value = serde_json::from_str(lines.next().unwrap_or_default())?;
        // While a cloud runs the last line may be incomplete.
        let whole = text.ends_with('\n');
        let count = text.lines().count() - usize::from(!whole);
        for line in lines.take(count.saturating_sub(1)) {
            let steps: Vec<Value> = serde_json::from_str(line)?;
            for step in steps {
                if let Some(name) = step["put"][0].as_str() {
                    registry["nodes"][name] = step["put"][1].clone();
                } else if let Some(name) = step["remove"].as_str() {
                    registry["nodes"][name] = Value::Null;
                }
            }
        }
        Ok(registry)
    }

    /// The agent's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn agent_pid(&self) -> Result<u32> {
        Ok(self.agent.as_ref().context("no agent runs")?.id())
    }

    /// edge-cloud's process.
    ///
    /// # Errors
    /// It does not run.
    pub fn cloud_pid(&self) -> Result<u32> {
        Ok(self.cloud.as_ref().context("no edge-cloud runs")?.id())
    }

    /// The proxy that counts the bytes of the link.
    ///
    /// # Errors
    /// The gate is not [`Setup::counted`].
    pub fn proxy(&self) -> Result<&Proxy> {
        self.proxy.as_ref().context("the link is not counted")
    }

    /// Gives the broker a certificate of the CA in the folder `data` of the gate's, which may be a
    /// new one, and returns the folder with that CA's files. The broker reads it at its start.
    ///
    /// # Errors
    /// edge-cloud's error message.
    pub fn certify_broker(&self, data: &str) -> Result<PathBuf> {
        let data = self.dir.join(data);
        let files = data.join("files");
        text(
            Command::new(program("edge-cloud")?)
                .args(["broker-config", "--name", "localhost", "--data"])
                .args([&data, &files]),
        )?;
        for name in ["broker.crt", "broker.key"] {
            fs::copy(files.join(name), self.dir.join("broker").join(name))?;
        }
        Ok(files)
    }

    /// The external broker of the link.
    ///
    /// # Errors
    /// The gate is not behind one.
    pub fn broker(&mut self) -> Result<&mut Broker> {
        self.broker.as_mut().context("there is no broker")
    }

    fn broker_config(&self, dir: &Path, port: u16) -> Result<()> {
        let (dir, port) = (dir.display().to_string(), port.to_string());
        self.cloud_text(&[
            "broker-config",
            &dir,
            "--name",
            "localhost",
            "--port",
            &port,
        ])
        .map(drop)
    }

    /// Writes the broker's files again, as after a change of the CA, and restarts it.
    ///
    /// # Errors
    /// edge-cloud's error message; the gate is not behind a broker.
    pub fn configure_broker(&mut self) -> Result<()> {
        let broker = self.broker.as_ref().context("there is no broker")?;
        self.broker_config(broker.dir(), broker.port())?;
        broker.amend()?;
        let broker = self.broker()?;
        broker.kill()?;
        broker.start()
    }

    /// Log of the broker.
    ///
    /// # Errors
    /// The gate is not behind one; those of the file system.
    pub fn broker_log(&self) -> Result<String> {
        self.broker.as_ref().context("there is no broker")?.log()
    }

    /// Makes the broker read certificates and lists again.
    ///
    /// # Errors
    /// The gate is not behind one, or it does not run.
    pub fn reload_broker(&self) -> Result<()> {
        self.broker.as_ref().context("there is no broker")?.reload()
    }

    /// Port of the broker.
    ///
    /// # Errors
    /// The gate is not behind one.
    pub fn broker_port(&self) -> Result<u16> {
        Ok(self.broker.as_ref().context("there is no broker")?.port())
    }

    /// Joins another node that has no agent, and returns the folder of its identity.
    ///
    /// # Errors
    /// The cloud's error message.
    pub fn join_another(&self, node: &str) -> Result<PathBuf> {
        let state = self.dir.join(node);
        let file = state.with_extension("toml");
        let config = format!(
            "version = 1\nnode = \"{node}\"\nstate-dir = \"{0}\"\nrun-dir = \"{0}\"\n",
            state.display()
        );
        fs::write(&file, config)?;
        let scheme = if self.broker.is_some() {
            "https"
        } else {
            "mqtts"
        };
        let url = format!("{scheme}://localhost:{}", self.port());
        let token = self.cloud_text(&["token", "create"])?;
        text(Command::new(&self.program).arg("--config").arg(file).args([
            "join",
            &url,
            "--token",
            token.trim(),
        ]))?;
        Ok(state.join("identity"))
    }

    /// The agent's state folder.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The network link to the cloud.
    ///
    /// # Errors
    /// The gate was set up without one.
    pub fn wan(&self) -> Result<&Wan> {
        self.wan.as_ref().context("the gate has no line")
    }

    /// The cloud's port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port.number()
    }

    fn agent_command(&self, args: &[&str]) -> Result<Command> {
        let mut words = self.wan.as_ref().map(Wan::at_gate).unwrap_or_default();
        words.extend_from_slice(&self.wrapper);
        let mut command = wrapped(words, &self.program);
        command
            .arg("--config")
            .arg(self.dir.join("edge-min.toml"))
            .args(args);
        Ok(command)
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// The program is missing.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("agent.log"))?;
        let child = self
            .agent_command(&["run"])?
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.agent = Some(child);
        Ok(())
    }

    /// Starts edge-cloud and waits for its API.
    ///
    /// # Errors
    /// It does not answer.
    pub fn start_cloud(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("cloud.log"))?;
        let (name, address, words) = match &self.wan {
            Some(wan) => (wan::CLOUD, wan::CLOUD, wan.at_cloud()),
            None => ("localhost", "127.0.0.1", Vec::new()),
        };
        let mut command = wrapped(words, &program("edge-cloud")?);
        if let Some(broker) = &self.broker {
            command
                .args(["serve", "--broker"])
                .arg(format!("mqtts://localhost:{}", broker.port()))
                .arg("--broker-crl")
                .arg(broker.dir().join("broker.crl"));
        } else {
            command.arg("serve");
        }
        let child = command
            .args(&self.cloud_args)
            .arg("--data")
            .arg(self.dir.join("cloud"))
            .args([
                "--name",
                name,
                "--listen",
                &format!("{address}:{}", self.port()),
            ])
            .arg("--manifests")
            .arg(self.dir.join("manifests"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()?;
        self.cloud = Some(child);
        self.until("edge-cloud answers", |gate| {
            gate.cloud_text(&["nodes"]).is_ok()
        })
    }

    /// SIGKILL to the agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_agent(&mut self) -> Result<()> {
        kill(&mut self.agent)
    }

    /// Leaves only the state folder, as a power cut does. Agent and workloads are killed at once, and
    /// everything in memory is removed.
    ///
    /// # Errors
    /// The agent does not run.
    pub fn power_cut(&mut self) -> Result<()> {
        let mut pids = self.pids()?;
        // Also processes that the agent has started for itself, as the one that writes the state cache.
        let own = measure::stack(&self.program, &self.dir)?;
        let agent = u64::from(self.agent_pid()?);
        pids.extend(own.into_iter().map(u64::from).filter(|pid| *pid != agent));
        self.kill_agent()?;
        for pid in pids {
            // It may have ended by itself.
            Command::new("kill")
                .args(["-9", &pid.to_string()])
                .stderr(Stdio::null())
                .status()?;
        }
        self.unmount()?;
        fs::remove_dir_all(self.dir.join("run"))?;
        Ok(())
    }

    /// Unmounts everything in the gate's folder.
    fn unmount(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        // What is mounted below another comes after it.
        for path in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(1))
        {
            // By whole components: gate 1 is not gate 10.
            if Path::new(path).starts_with(&self.dir) {
                Command::new("umount").args(["-l", path]).status()?;
            }
        }
        Ok(())
    }

    /// Further arguments of `edge-cloud serve`, from its next start on.
    pub fn set_cloud_args(&mut self, args: Vec<String>) {
        self.cloud_args = args;
    }

    /// SIGKILL to edge-cloud.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_cloud(&mut self) -> Result<()> {
        kill(&mut self.cloud)
    }

    /// What `edge-cloud ARGS` prints.
    ///
    /// # Errors
    /// Its error message.
    pub fn cloud_text(&self, args: &[&str]) -> Result<String> {
        text(
            Command::new(program("edge-cloud")?)
                .arg("--data")
                .arg(self.dir.join("cloud"))
                .args(args),
        )
    }

    /// Answer of edge-cloud's API to a GET, without the separate process of
    /// [`Self::cloud_text`].
    ///
    /// # Errors
    /// It does not answer.
    pub fn cloud_json(&self, target: &str) -> Result<Value> {
        measure::get(&self.dir.join("cloud/api.sock"), target)
    }

    /// What `edge-min ARGS` prints.
    ///
    /// # Errors
    /// Its error message.
    pub fn agent_text(&self, args: &[&str]) -> Result<String> {
        text(&mut self.agent_command(args)?)
    }

    /// Answer of `edge-min status --json`.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.agent_text(&["status", "--json"])?,
        )?)
    }

    /// Process ids of all running containers, sorted.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn pids(&self) -> Result<Vec<u64>> {
        let status = self.status()?;
        let pods = status["pods"].as_array().context("no pods in the status")?;
        let containers = pods
            .iter()
            .filter_map(|pod| pod["containers"].as_array())
            .flatten();
        let mut pids: Vec<u64> = containers.filter_map(|one| one["pid"].as_u64()).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Every process in the cgroups of this gate's workloads, sorted.
    ///
    /// # Errors
    /// The hierarchy cannot be read.
    pub fn cgroup_pids(&self) -> Result<Vec<u64>> {
        let name = self.dir.file_name().context("a gate has a folder")?;
        let mut pids = std::collections::BTreeSet::new();
        // The one hierarchy of v2, or the several of v1.
        let top = PathBuf::from("/sys/fs/cgroup");
        let several = fs::read_dir(&top)?.flatten().map(|one| one.path());
        for hierarchy in several.chain([top.clone()]) {
            let mut folders = vec![hierarchy.join(name)];
            while let Some(folder) = folders.pop() {
                let procs = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                pids.extend(procs.lines().filter_map(|pid| pid.parse::<u64>().ok()));
                let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
                folders.extend(
                    entries
                        .map(|entry| entry.path())
                        .filter(|path| path.is_dir()),
                );
            }
        }
        Ok(pids.into_iter().collect())
    }

    /// Waits until `pods` containers run, the link is live and both roots are equal.
    ///
    /// # Errors
    /// It does not happen.
    pub fn until_converged(&self, pods: usize) -> Result<()> {
        self.converged_within(STATE_TIMEOUT, pods)
    }

    /// The same with another timeout.
    ///
    /// # Errors
    /// It does not happen.
    pub fn converged_within(&self, timeout: Duration, pods: usize) -> Result<()> {
        self.until_within(timeout, "the gate converges", |gate| {
            let live = gate
                .status()
                .is_ok_and(|status| status["connected"] == true && status["in_sync"] == true);
            live && gate.pids().is_ok_and(|pids| pids.len() == pods)
        })
    }

    /// Waits until the log of the pod `pod` at the cloud is this text: a container counts as
    /// running before it has written anything.
    ///
    /// # Errors
    /// It does not become that.
    pub fn until_logged(&self, pod: &str, text: &str) -> Result<()> {
        let pod = format!("gate/{pod}");
        self.until(&format!("{pod} has logged {text:?}"), |gate| {
            gate.cloud_text(&["logs", &pod])
                .is_ok_and(|log| log == text)
        })
    }

    /// Waits for a state.
    ///
    /// # Errors
    /// It is not reached; the logs are in the message.
    pub fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) -> Result<()> {
        self.until_within(STATE_TIMEOUT, what, reached)
    }

    /// Waits for a state with another timeout.
    ///
    /// # Errors
    /// It is not reached; the logs are in the message.
    pub fn until_within(
        &self,
        timeout: Duration,
        what: &str,
        mut reached: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if reached(self) {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        let mut logs = String::new();
        for name in ["agent.log", "cloud.log"] {
            if let Ok(mut file) = fs::File::open(self.dir.join(name)) {
                file.read_to_string(&mut logs)?;
            }
        }
        let tail: Vec<&str> = logs.lines().rev().take(40).collect();
        bail!(
            "{what}: not within {timeout:?}; newest first:\n{}",
            tail.join("\n")
        )
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Pods outlive their agent by design. They are removed by an empty folder, or by hand when
        // the link is gone permanently.
        let linked = self
            .status()
            .is_ok_and(|status| status["connected"] == true);
        let pids = self.pids().unwrap_or_default();
        if linked {
            for entry in fs::read_dir(self.dir.join("manifests"))
                .into_iter()
                .flatten()
                .flatten()
            {
                fs::remove_file(entry.path()).ok();
            }
            self.until("pods end", |gate| {
                gate.status()
                    .is_ok_and(|status| status["pods"] == Value::Array(Vec::new()))
            })
            .ok();
        }
        kill(&mut self.agent).ok();
        kill(&mut self.cloud).ok();
        for pid in pids {
            Command::new("kill")
                .args(["-9", &pid.to_string()])
                .stderr(Stdio::null())
                .status()
                .ok();
        }
        self.unmount().ok();
        fs::remove_dir_all(&self.dir).ok();
        // The agent removes the hierarchies that it uses; runc creates the path in every one.
        if let Some(name) = self.dir.file_name() {
            let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
            for line in mounts.lines().filter(|line| line.contains(" cgroup")) {
                if let Some(at) = line.split(' ').nth(1) {
                    remove_cgroups(&Path::new(at).join(name));
                }
            }
        }
    }
}

/// Reference of the image of a [`script_pod`]; [`Setup::image`] makes it.
pub const SCRIPT_IMAGE: &str = "toll/box:1";

/// A pod of one container that runs a shell script; in the image when it is not a plain process.
#[must_use]
pub fn script_pod(name: &str, process: bool, policy: &str, script: &str) -> String {
    let (class, image, shell) = if process {
        ("process", String::new(), "/bin/sh")
    } else {
        (
            "runc",
            format!("image: '{SCRIPT_IMAGE}', "),
            "/bin/busybox, sh",
        )
    };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  \
         runtimeClassName: {class}\n  hostNetwork: true\n  restartPolicy: {policy}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n    \
         - {{name: main, {image}command: [{shell}, -c, '{script}']}}\n"
    )
}
