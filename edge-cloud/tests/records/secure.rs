//! Sinks that require TLS and authentication: real servers, wrong credentials first. Each time the
//! error names the sink and a hint, nothing is acknowledged meanwhile, and once edge-cloud
//! has the right ones every record arrives.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use edge_cloud::records::target::Config;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::servers::{Jetstream, Mosquitto};
use super::{Place, acknowledged, check_ledger, expected, outbox, until};

const COUNT: u64 = 50;

/// A CA, the certificate of a server at 127.0.0.1, and one of edge-cloud's; as PEM files.
pub(crate) struct Pki {
    dir: tempfile::TempDir,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a CA");
        let key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let put = |name: &str, text: String| fs::write(dir.path().join(name), text).unwrap();
        put("ca.pem", ca.pem());
        for name in ["127.0.0.1", "edge-cloud"] {
            let mut params = CertificateParams::new([name.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            let key = KeyPair::generate().unwrap();
            put(
                &format!("{name}.pem"),
                params.signed_by(&key, &issuer).unwrap().pem(),
            );
            put(&format!("{name}.key"), key.serialize_pem());
        }
        Self { dir }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file with credentials.
    fn auth(&self, text: &str) -> Option<PathBuf> {
        let path = self.file(&format!("auth-{}", text.len()));
        fs::write(&path, text).unwrap();
        Some(path)
    }

    fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.file("edge-cloud.pem"), self.file("edge-cloud.key")))
    }
}

/// The error of an edge-cloud with these settings contains all of these words, and nothing is acknowledged.
async fn is_refused(place: &mut Place, config: Config, words: &[&str]) {
    let url = config.url.clone().unwrap();
    place.config = config;
    let (outbox, _) = outbox(COUNT);
    let cloud = place.start(&outbox).await;
    let error = until(|| cloud.view().sink.error).await;
    for word in words.iter().chain(&[url.as_str()]) {
        assert!(error.contains(word), "{word}: {error}");
    }
    until(|| (cloud.events("RecordsFailing") > 0).then_some(())).await;
    assert_eq!(acknowledged(&outbox), 1);
    assert_eq!(cloud.view().sink.failing, 1);
}

/// The server refuses wrong credentials, and edge-cloud the certificate of another CA.
async fn wrong_words_and_a_wrong_ca_are_refused(
    place: &mut Place,
    right: &Config,
    (auth, reason): (Option<PathBuf>, &str),
) {
    let wrong = Config {
        auth,
        ..right.clone()
    };
    is_refused(place, wrong, &[reason, "--records-auth"]).await;
    let other = Pki::new();
    let wrong = Config {
        ca: Some(other.file("ca.pem")),
        ..right.clone()
    };
    is_refused(place, wrong, &["invalid peer certificate", "--records-ca"]).await;
}

/// With these settings every record is acknowledged; returns the warning about the sink.
async fn is_served(place: &mut Place, config: Config) -> Option<String> {
    place.config = config;
    let (outbox, end) = outbox(COUNT);
    let cloud = place.start(&outbox).await;
    until(|| (acknowledged(&outbox) >= end).then_some(())).await;
    let view = until(|| Some(cloud.view()).filter(|view| view.sink.error.is_none())).await;
    check_ledger(&view, COUNT, 0);
    view.sink.warning
}

/// Accepts posts over TLS from clients with the token.
async fn https(pki: &Pki, token: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let taken = Arc::<Mutex<Vec<String>>>::default();
    let chain = CertificateDer::from_pem_file(pki.file("127.0.0.1.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(pki.file("127.0.0.1.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/in", listener.local_addr().unwrap());
    let lines = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, lines) = (tls.clone(), Arc::clone(&lines));
            tokio::spawn(async move {
                let Ok(mut stream) = tls.accept(stream).await else {
                    return;
                };
                let mut input = Vec::new();
                while stream
                    .read_buf(&mut input)
                    .await
                    .is_ok_and(|count| count > 0)
                {
                    let text = String::from_utf8_lossy(&input).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else {
                        continue;
                    };
                    let head = head.to_ascii_lowercase();
                    let length = head.split("content-length: ").nth(1).unwrap();
                    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                    if body.len() < length {
                        continue;
                    }
                    let shown = head.contains(&format!("\r\nauthorization: bearer {token}\r\n"));
                    if shown {
                        let texts = body.lines().map(str::to_owned);
                        lines.lock().unwrap().extend(texts);
                    }
                    let status = if shown { "200 OK" } else { "401 Unauthorized" };
                    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                    input.clear();
                }
            });
        }
    });
    (url, taken)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_wants_a_certificate_that_is_trusted_and_a_token() {
    let pki = Pki::new();
    let (url, taken) = https(&pki, "secret-of-the-sink").await;
    let mut place = Place::new(Some(url.clone()));
    let right = Config {
        url: Some(url),
        ca: Some(pki.file("ca.pem")),
        auth: pki.auth("secret-of-the-sink"),
        ..Config::default()
    };
    let wrong = (pki.auth("another secret"), "401 Unauthorized");
    wrong_words_and_a_wrong_ca_are_refused(&mut place, &right, wrong).await;
    assert!(taken.lock().unwrap().is_empty());
    is_served(&mut place, right).await;
    let texts: Vec<String> = taken
        .lock()
        .unwrap()
        .iter()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["text"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(texts, expected(COUNT));
}

/// Records that a broker has passed on, in order and once each.
async fn passed_on(broker: &Mosquitto) -> Vec<String> {
    let by_seq = until(|| {
        let heard = broker.heard().into_iter();
        let by_seq: std::collections::BTreeMap<u64, String> =
            heard.map(|(_, text, seq)| (seq, text)).collect();
        (by_seq.len() as u64 >= COUNT).then_some(by_seq)
    })
    .await;
    by_seq.into_values().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_wants_a_password_over_tls() {
    let pki = Pki::new();
    let broker = Mosquitto::with_tls(&pki, Some(("edge", "word")));
    broker.subscribe("edge/records/#").await;
    let url = broker.url("edge/records").replace("mqtt://", "mqtts://");
    let mut place = Place::new(Some(url.clone()));
    let right = Config {
        url: Some(url),
        ca: Some(pki.file("ca.pem")),
        auth: pki.auth("edge:word"),
        ..Config::default()
    };
    let wrong = (pki.auth("edge:another"), "broker");
    wrong_words_and_a_wrong_ca_are_refused(&mut place, &right, wrong).await;
    assert!(broker.heard().is_empty());
    is_served(&mut place, right).await;
    assert_eq!(passed_on(&broker).await, expected(COUNT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_wants_a_certificate() {
    let pki = Pki::new();
    let broker = Mosquitto::with_tls(&pki, None);
    broker.subscribe("edge/records/#").await;
    let url = broker.url("edge/records").replace("mqtt://", "mqtts://");
    let mut place = Place::new(Some(url.clone()));
    let wrong = Config {
        url: Some(url),
        ca: Some(pki.file("ca.pem")),
        ..Config::default()
    };
    let right = Config {
        identity: pki.identity(),
        ..wrong.clone()
    };
    is_refused(&mut place, wrong, &["--records-cert"]).await;
    is_served(&mut place, right).await;
    assert_eq!(passed_on(&broker).await, expected(COUNT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jetstream_wants_a_user_over_tls_and_its_stream_is_looked_at() {
    let (pki, other) = (Pki::new(), Pki::new());
    let server = Jetstream::with_tls(&pki, ("edge", "word"));
    let url = server.url("edge").replace("nats://", "natss://");
    let mut place = Place::new(Some(url.clone()));
    let right = Config {
        url: Some(url),
        ca: Some(pki.file("ca.pem")),
        auth: pki.auth("edge:word"),
        ..Config::default()
    };
    server.make_stream("edge.>").await;
    let wrong = Config {
        auth: pki.auth("edge:another"),
        ..right.clone()
    };
    is_refused(
        &mut place,
        wrong,
        &["authorization violation", "--records-auth"],
    )
    .await;
    let wrong = Config {
        ca: Some(other.file("ca.pem")),
        ..right.clone()
    };
    is_refused(&mut place, wrong, &["--records-ca"]).await;
    let warning = is_served(&mut place, right).await.unwrap();
    assert!(warning.contains("EDGE") && warning.contains("sync_interval: always"));
    let messages = server.messages("edge.gate.toll").await;
    let texts: Vec<String> = messages.into_iter().map(|(text, _)| text).collect();
    assert_eq!(texts, expected(COUNT));
}
