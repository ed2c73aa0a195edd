//! Goal: a node joins with a token over real TLS, once, and only where it should.
//! Method: rustls on both ends of real TCP connections; the answers are read as a node would.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panic, its helpers, too"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use edge_cloud::identity::authorities::Authorities;
use edge_cloud::identity::ca::{Ca, Request};
use edge_cloud::identity::enrol::{CertificateTimes, EnrolmentService};
use edge_cloud::identity::registry::{Admission, Registry};
use edge_cloud::identity::token::TokenStore;
use edge_cloud::nodes::TokenSpec;
use edge_cloud::transport::tls;
use edge_proto::enrol::{ALPN_JOIN, ALPN_MQTT, JoinAnswer, JoinRequest};
use edge_proto::wire::Wire as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer as _, X509Certificate};

struct Cloud {
    ca: Arc<Ca>,
    tokens: Arc<TokenStore>,
    address: SocketAddr,
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Serves enrolments; on ALPN `mqtt` it answers with the name of an admitted peer, or `-`.
async fn cloud(data: &Path) -> Cloud {
    let ca = Arc::new(Ca::open(data).unwrap());
    let cas = Authorities::open(data).unwrap();
    let tokens = Arc::new(TokenStore::open(data).unwrap());
    let registry = Arc::new(Registry::open(data, now()).unwrap());
    let config =
        tls::server_config(&cas, &["127.0.0.1".to_owned()], 8, Arc::new(|_| true)).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tokens2 = Arc::clone(&tokens);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(tcp).await else {
                continue;
            };
            if stream.get_ref().1.alpn_protocol() == Some(ALPN_JOIN) {
                let service = EnrolmentService {
                    cas: &cas,
                    tokens: &tokens2,
                    registry: &registry,
                    broker: None,
                    times: CertificateTimes::default(),
                };
                let _result = service.serve(stream).await;
                continue;
            }
            let peer = tls::peer(stream.get_ref().1, now());
            let peer = peer.filter(|peer| registry.admit(peer, now()).unwrap() == Admission::Known);
            let name = peer.map_or("-".to_owned(), |peer| peer.node);
            stream.write_all(name.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    Cloud {
        ca,
        tokens,
        address,
    }
}

type Identity = (CertificateDer<'static>, Vec<u8>);

async fn connect(
    cloud: &Cloud,
    ca: &Ca,
    alpn: &[u8],
    identity: Option<&Identity>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![certificate.clone()],
                PrivatePkcs8KeyDer::from(key.clone()).into(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let tcp = TcpStream::connect(cloud.address).await?;
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

async fn join(cloud: &Cloud, token: &str, node: &str) -> (JoinAnswer, Vec<u8>) {
    let key = new_key();
    (
        join_with(cloud, token, node, &key).await,
        key.serialize_der(),
    )
}

fn new_key() -> rcgen::KeyPair {
    rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap()
}

async fn join_with(cloud: &Cloud, token: &str, node: &str, key: &rcgen::KeyPair) -> JoinAnswer {
    let mut stream = ask_to_join(cloud, token, node, key).await;
    let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut answer).await.unwrap();
    JoinAnswer::from_wire(&answer).unwrap()
}

/// Sends the request of a join and does not read the answer.
async fn ask_to_join(
    cloud: &Cloud,
    token: &str,
    node: &str,
    key: &rcgen::KeyPair,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut stream = connect(cloud, &cloud.ca, ALPN_JOIN, None).await.unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(key)
        .unwrap();
    let parts: Vec<_> = token.split('.').collect();
    let bytes = JoinRequest {
        token_id: parts[1].to_owned(),
        token_secret: parts[2].to_owned(),
        node: node.to_owned(),
        csr: csr.der().to_vec(),
    }
    .to_wire();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream
}

/// The name under which the cloud admits this identity; an error when TLS refuses it.
async fn admitted(cloud: &Cloud, identity: Option<&Identity>) -> std::io::Result<String> {
    let mut stream = connect(cloud, &cloud.ca, ALPN_MQTT, identity).await?;
    let mut name = String::new();
    stream.read_to_string(&mut name).await?;
    Ok(name)
}

#[tokio::test]
async fn a_node_joins_as_often_as_its_token_allows_and_its_certificate_is_admitted() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud(folder.path()).await;
    let token = cloud
        .tokens
        .create(cloud.ca.der(), &TokenSpec::plain(1, 3_600), now())
        .unwrap();
    for name in ["Gate", "a.b", ""] {
        let (answer, _) = join(&cloud, &token, name).await;
        assert!(matches!(answer, JoinAnswer::Refused { .. }), "{name}");
    }
    let (answer, key) = join(&cloud, &token, "gate-7").await;
    let JoinAnswer::Accepted {
        certificate, ca, ..
    } = answer
    else {
        panic!("{answer:?}");
    };
    assert_eq!(ca, cloud.ca.der().to_vec());
    let identity = (certificate.into(), key);
    assert_eq!(admitted(&cloud, Some(&identity)).await.unwrap(), "gate-7");
    assert_eq!(admitted(&cloud, None).await.unwrap(), "-");
    let (answer, _) = join(&cloud, &token, "gate-8").await;
    assert!(matches!(answer, JoinAnswer::Refused { .. }));
}

/// The join's answer is lost: the node repeats the request with its key, and gets the certificate
/// for the one use. No other node gets anything for it.
#[tokio::test]
async fn a_join_whose_answer_was_lost_is_repeated_without_another_use() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud(folder.path()).await;
    let token = cloud
        .tokens
        .create(cloud.ca.der(), &TokenSpec::plain(1, 3_600), now())
        .unwrap();
    let key = new_key();
    let mut lost = ask_to_join(&cloud, &token, "gate-7", &key).await;
    // The cloud has decided once the first byte of its answer arrives.
    lost.read_u8().await.unwrap();
    drop(lost);
    let serial = |answer: &JoinAnswer| match answer {
        JoinAnswer::Accepted { certificate, .. } => {
            let (_, certificate) = X509Certificate::from_der(certificate).unwrap();
            certificate.raw_serial().to_vec()
        }
        _ => panic!("{answer:?}"),
    };
    let again = join_with(&cloud, &token, "gate-7", &key).await;
    let once_more = join_with(&cloud, &token, "gate-7", &key).await;
    assert_eq!(serial(&again), serial(&once_more));
    let JoinAnswer::Accepted { certificate, .. } = again else {
        unreachable!()
    };
    let identity = (certificate.into(), key.serialize_der());
    assert_eq!(admitted(&cloud, Some(&identity)).await.unwrap(), "gate-7");

    let refused = |answer| assert!(matches!(answer, JoinAnswer::Refused { .. }), "{answer:?}");
    let wrong = format!("em1.{}.00.00", token.split('.').nth(1).unwrap());
    refused(join_with(&cloud, &wrong, "gate-7", &key).await);
    refused(join_with(&cloud, &token, "gate-8", &key).await);
    refused(join_with(&cloud, &token, "gate-7", &new_key()).await);
    // Another token costs a use of its own, once.
    let other = cloud
        .tokens
        .create(cloud.ca.der(), &TokenSpec::plain(1, 3_600), now())
        .unwrap();
    for _ in 0..2 {
        let paid = join_with(&cloud, &other, "gate-7", &key).await;
        assert_eq!(serial(&paid), serial(&once_more));
    }
    refused(join_with(&cloud, &other, "gate-8", &new_key()).await);
}

/// Goal: a join that could not be stored costs no use, because a board in the field has one token. Method:
/// a folder is in place of the file of the nodes, and is removed.
#[tokio::test]
async fn a_join_that_cannot_be_stored_costs_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud(folder.path()).await;
    let token = cloud
        .tokens
        .create(cloud.ca.der(), &TokenSpec::plain(1, 3_600), now())
        .unwrap();
    let nodes = folder.path().join("nodes.json");
    let whole = std::fs::read(&nodes).unwrap();
    std::fs::remove_file(&nodes).unwrap();
    std::fs::create_dir(&nodes).unwrap();
    let (answer, _) = join(&cloud, &token, "a").await;
    assert!(matches!(answer, JoinAnswer::Refused { reason } if reason.contains("cannot store")));
    std::fs::remove_dir(&nodes).unwrap();
    std::fs::write(&nodes, whole).unwrap();
    let accepted = join(&cloud, &token, "a").await.0;
    assert!(matches!(accepted, JoinAnswer::Accepted { .. }));
    let (answer, _) = join(&cloud, &token, "b").await;
    assert!(
        matches!(answer, JoinAnswer::Refused { .. }),
        "it was for one"
    );
}

#[tokio::test]
async fn an_expired_token_and_a_taken_name_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud(folder.path()).await;
    let old = cloud
        .tokens
        .create(cloud.ca.der(), &TokenSpec::plain(1, 60), now() - 60)
        .unwrap();
    assert!(matches!(
        join(&cloud, &old, "a").await.0,
        JoinAnswer::Refused { .. }
    ));
    let token = cloud
        .tokens
        .create(cloud.ca.der(), &TokenSpec::plain(2, 3_600), now())
        .unwrap();
    assert!(matches!(
        join(&cloud, &token, "a").await.0,
        JoinAnswer::Accepted { .. }
    ));
    assert!(matches!(
        join(&cloud, &token, "a").await.0,
        JoinAnswer::Refused { .. }
    ));
}

#[tokio::test]
async fn foreign_expired_and_unlisted_certificates_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cloud = cloud(folder.path()).await;
    let foreign = tempfile::tempdir().unwrap();
    let foreign = Ca::open(foreign.path()).unwrap();
    assert!(connect(&cloud, &foreign, ALPN_JOIN, None).await.is_err());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    let identity = |ca: &Ca, unix_s| {
        let request = Request::read(csr.der()).unwrap();
        let issued = ca.node("a", &request, None, unix_s, 60).unwrap();
        (issued.der.into(), key.serialize_der())
    };
    assert!(
        admitted(&cloud, Some(&identity(&foreign, now())))
            .await
            .is_err()
    );
    assert!(
        admitted(&cloud, Some(&identity(&cloud.ca, now() - 61)))
            .await
            .is_err()
    );
    let unlisted = admitted(&cloud, Some(&identity(&cloud.ca, now()))).await;
    assert_eq!(unlisted.unwrap(), "-");
}

/// Goal: a client without a token cannot make us store much. Method: the head of a request that never
/// ends, over one connection.
#[tokio::test]
async fn a_request_with_an_endless_head_is_refused_soon() {
    let data = tempfile::tempdir().unwrap();
    let cas = Authorities::open(data.path()).unwrap();
    let tokens = TokenStore::open(data.path()).unwrap();
    let registry = Registry::open(data.path(), now()).unwrap();
    let service = EnrolmentService {
        cas: &cas,
        tokens: &tokens,
        registry: &registry,
        broker: None,
        times: CertificateTimes::default(),
    };
    let (mut stream, far) = tokio::io::duplex(1024);
    let client = async move {
        stream
            .write_all(b"POST /v1/join HTTP/1.1\r\nx: ")
            .await
            .unwrap();
        let mut sent = 0;
        // The server closes, or it would accept everything.
        while sent < 64 * 1024 && stream.write_all(&[b'a'; 1024]).await.is_ok() {
            sent += 1024;
        }
        sent
    };
    let (served, sent) = tokio::join!(service.serve_http(far), client);
    assert!(served.is_err());
    assert!(sent < 32 * 1024, "{sent}");
}
