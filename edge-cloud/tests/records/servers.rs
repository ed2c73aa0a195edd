//! Servers for records: a small HTTP server that fails in every way, Debian's mosquitto and Debian's
//! nats-server.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use memtests::ports::Port;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::net::TcpListener;

use crate::board::STATE_TIMEOUT;
use crate::secure::Pki;

/// Counts and content of the HTTP server's posts.
#[derive(Clone, Default)]
pub(crate) struct Posts {
    count: u32,
    /// Posts that were not stored.
    pub(crate) refused: u32,
    /// Keys of the posts that were stored and answered with an error.
    pub(crate) denied: Vec<String>,
    /// Keys and bodies of all stored posts, including those.
    pub(crate) taken: Vec<(String, String)>,
}

type Shared = Arc<Mutex<Posts>>;

/// Accepts posts, but fails by their number: of each five it refuses the first, and stores the second and
/// answers with an error. So nothing can be delivered before it has failed in both ways.
pub(crate) struct Http {
    address: SocketAddr,
    posts: Shared,
}

impl Http {
    pub(crate) async fn start() -> Self {
        let posts = Shared::default();
        let app = Router::new()
            .route("/in", post(take))
            .with_state(Arc::clone(&posts));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, posts }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/in", self.address)
    }

    pub(crate) fn posts(&self) -> Posts {
        self.posts.lock().unwrap().clone()
    }
}

async fn take(State(posts): State<Shared>, headers: HeaderMap, body: String) -> StatusCode {
    let mut posts = posts.lock().unwrap();
    posts.count += 1;
    let number = posts.count % 5;
    if number == 1 {
        posts.refused += 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    posts.taken.push((key.clone(), body));
    if number == 2 {
        posts.denied.push(key);
        return StatusCode::GATEWAY_TIMEOUT;
    }
    StatusCode::NO_CONTENT
}

/// A program of Debian's that listens on a port.
struct Server {
    command: Vec<String>,
    port: Port,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start(command: impl Fn(u16, &str) -> Vec<String>) -> Self {
        let (port, dir) = (Port::reserve().unwrap(), tempfile::tempdir().unwrap());
        let command = command(port.number(), &dir.path().display().to_string());
        let child = run(&command, port.number());
        Self {
            command,
            port,
            child,
            _dir: dir,
        }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.kill();
        self.child = run(&self.command, self.port.number());
    }
}

fn run(command: &[String], port: u16) -> Child {
    // Debian has them in /usr/sbin, which is not in every PATH.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let child = Command::new(&command[0])
        .args(&command[1..])
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}: see scripts/setup", command[0]));
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(
            start.elapsed() < STATE_TIMEOUT,
            "{} does not listen",
            command[0]
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Topic, payload and `seq`.
type Heard = (String, String, u64);

/// Debian's mosquitto, and a subscriber with a session that survives both.
pub(crate) struct Mosquitto {
    server: Server,
    /// Port of the subscriber, without TLS, if it is another one.
    plain: Option<Port>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

impl Mosquitto {
    pub(crate) fn start() -> Self {
        let server = Server::start(|port, dir| {
            let file = format!("{dir}/mosquitto.conf");
            let config = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\n\
                 max_queued_messages 0\npersistence false\n"
            );
            std::fs::write(&file, config).unwrap();
            vec!["mosquitto".to_owned(), "-c".to_owned(), file]
        });
        Self {
            plain: None,
            server,
            heard: Arc::default(),
        }
    }

    /// Requires TLS and a password, or a certificate of the same CA.
    pub(crate) fn with_tls(pki: &Pki, user: Option<(&str, &str)>) -> Self {
        let plain = Port::reserve().unwrap();
        let plain_port = plain.number();
        let server = Server::start(|port, dir| {
            let file = format!("{dir}/mosquitto.conf");
            let who = match user {
                None => "require_certificate true\nuse_identity_as_username true\n".to_owned(),
                Some((user, word)) => {
                    let passwords = format!("{dir}/passwords");
                    let made = Command::new("mosquitto_passwd")
                        .args(["-b", "-c", &passwords, user, word])
                        .status();
                    assert!(made.unwrap().success());
                    format!("password_file {passwords}\n")
                }
            };
            let [ca, certificate, key] =
                ["ca.pem", "127.0.0.1.pem", "127.0.0.1.key"].map(|name| pki.file(name));
            let config = format!(
                "per_listener_settings true\nuser root\nmax_queued_messages 0\npersistence false\n\
                 listener {port} 127.0.0.1\ncafile {}\ncertfile {}\nkeyfile {}\n\
                 allow_anonymous false\n{who}\
                 listener {plain_port} 127.0.0.1\nallow_anonymous true\n",
                ca.display(),
                certificate.display(),
                key.display(),
            );
            std::fs::write(&file, config).unwrap();
            vec!["mosquitto".to_owned(), "-c".to_owned(), file]
        });
        Self {
            server,
            plain: Some(plain),
            heard: Arc::default(),
        }
    }

    pub(crate) fn url(&self, topic: &str) -> String {
        format!("mqtt://127.0.0.1:{}/{topic}", self.server.port.number())
    }

    pub(crate) fn restart(&mut self) {
        self.server.restart();
    }

    /// Subscribes, again after each connect; returns after the first time.
    pub(crate) async fn subscribe(&self, filter: &str) {
        let port = self.plain.as_ref().unwrap_or(&self.server.port).number();
        let (heard, filter) = (Arc::clone(&self.heard), filter.to_owned());
        let (done, subscribed) = tokio::sync::oneshot::channel();
        let mut done = Some(done);
        tokio::spawn(async move {
            loop {
                let mut options = MqttOptions::new("test", "127.0.0.1", port);
                options
                    .set_clean_start(true)
                    .set_outgoing_inflight_upper_limit(8);
                let (client, mut events) = AsyncClient::new(options, 8);
                client
                    .subscribe(filter.clone(), QoS::AtLeastOnce)
                    .await
                    .unwrap();
                while let Ok(event) = events.poll().await {
                    match event {
                        Event::Incoming(Packet::SubAck(_)) => {
                            if let Some(done) = done.take() {
                                done.send(()).unwrap();
                            }
                        }
                        Event::Incoming(Packet::Publish(publish)) => {
                            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                            let properties = publish.properties.unwrap().user_properties;
                            let seq = properties.iter().find(|(name, _)| name == "seq");
                            let seq = seq.unwrap().1.parse().unwrap();
                            let one = (text(&publish.topic), text(&publish.payload), seq);
                            heard.lock().unwrap().push(one);
                        }
                        _ => {}
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        subscribed.await.unwrap();
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }
}

/// Debian's nats-server with a JetStream on disk.
pub(crate) struct Jetstream {
    server: Server,
    /// The CA of its certificate, and the user that may write.
    secure: Option<(std::path::PathBuf, &'static str, &'static str)>,
}

impl Jetstream {
    pub(crate) fn start() -> Self {
        Self {
            server: Self::server(&[]),
            secure: None,
        }
    }

    /// Requires TLS, and a user.
    pub(crate) fn with_tls(pki: &Pki, (user, word): (&'static str, &'static str)) -> Self {
        let [certificate, key] =
            ["127.0.0.1.pem", "127.0.0.1.key"].map(|name| pki.file(name).display().to_string());
        let words = ["--tls", "--tlscert", &certificate, "--tlskey", &key];
        let words = [&words[..], &["--user", user, "--pass", word]].concat();
        Self {
            server: Self::server(&words),
            secure: Some((pki.file("ca.pem"), user, word)),
        }
    }

    fn server(more: &[&str]) -> Server {
        Server::start(|port, dir| {
            let port = port.to_string();
            let words = [
                "nats-server",
                "-js",
                "-a",
                "127.0.0.1",
                "-sd",
                dir,
                "-p",
                &port,
            ];
            let words = words.iter().chain(more);
            words.map(|word| (*word).to_owned()).collect()
        })
    }

    pub(crate) fn url(&self, subject: &str) -> String {
        format!("nats://127.0.0.1:{}/{subject}", self.server.port.number())
    }

    pub(crate) fn restart(&mut self) {
        self.server.restart();
    }

    async fn context(&self) -> async_nats::jetstream::Context {
        let url = format!("nats://127.0.0.1:{}", self.server.port.number());
        let mut options = async_nats::ConnectOptions::new();
        if let Some((ca, user, word)) = &self.secure {
            options = options
                .require_tls(true)
                .add_root_certificates(ca.clone())
                .user_and_password((*user).to_owned(), (*word).to_owned());
        }
        async_nats::jetstream::new(options.connect(url).await.unwrap())
    }

    /// A stream without a useful duplicate window.
    pub(crate) async fn make_stream(&self, subjects: &str) {
        let config = async_nats::jetstream::stream::Config {
            name: "EDGE".to_owned(),
            subjects: vec![subjects.to_owned()],
            duplicate_window: Duration::from_millis(100),
            ..Default::default()
        };
        self.context().await.create_stream(config).await.unwrap();
    }

    /// All messages of a subject, in order: the payload, and whether it is a loss.
    pub(crate) async fn messages(&self, subject: &str) -> Vec<(String, bool)> {
        let context = self.context().await;
        let mut stream = context.get_stream("EDGE").await.unwrap();
        let last = stream.info().await.unwrap().state.last_sequence;
        let mut messages = VecDeque::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.unwrap();
            assert_eq!(message.subject.as_str(), subject);
            let lost = message.headers.get("Edge-Lost").is_some();
            let text = String::from_utf8(message.payload.to_vec()).unwrap();
            messages.push_back((text, lost));
        }
        messages.into()
    }
}
