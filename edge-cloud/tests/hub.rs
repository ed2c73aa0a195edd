//! Goal: the identity of a node, its rights, and the end of its link are as promised. Method: the real
//! port with real certificates, and boards with real MQTT over TLS, invalid where it matters.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod board;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use board::{Answers, Board, Client, Cloud, Identity, identity, now, topic_down, topic_up};
use edge_cloud::identity::ca::Ca;
use edge_cloud::metrics;
use edge_cloud::nodes::{
    CaAdmin as _, Calls as _, NodeAdmin as _, NodeReports as _, RecordReports as _, TokenSpec,
};
use edge_cloud::source::Status;
use edge_proto::call::{LogsRequest, METHOD_LOGS, METHOD_RENEW};
use edge_proto::limits::CALLS_MAX;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{DisconnectReasonCode, LastWill, Packet, Publish};
use rustls::HandshakeKind;

/// A board that reconnects whenever its link ends, until it is switched off. It counts its links.
struct Restless {
    links: Arc<AtomicU32>,
    refusals: Arc<AtomicU32>,
    off: Arc<AtomicBool>,
}

impl Restless {
    fn switch_on(cloud: &Arc<Cloud>, node: &'static str, identity: &Identity) -> Self {
        let new = Self {
            links: Arc::default(),
            refusals: Arc::default(),
            off: Arc::default(),
        };
        let (links, refusals) = (Arc::clone(&new.links), Arc::clone(&new.refusals));
        let off = Arc::clone(&new.off);
        let (cloud, identity) = (Arc::clone(cloud), identity.clone());
        tokio::spawn(async move {
            while !off.load(Ordering::SeqCst) {
                match Board::open(&cloud, node, &identity, Answers::Whole).await {
                    Ok(mut board) => {
                        links.fetch_add(1, Ordering::SeqCst);
                        tokio::select! {
                            _ended = board.run() => {}
                            () = switched_off(&off) => {}
                        }
                    }
                    // The answer allows another attempt; it does not require a new join.
                    Err(error) if error.contains("ServerBusy") => {
                        refusals.fetch_add(1, Ordering::SeqCst);
                    }
                    Err(_) => {}
                }
                // The agent's own shortest wait is 500 ms.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        new
    }
}

async fn switched_off(off: &AtomicBool) {
    while !off.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A call as the API makes it: its pieces until it ends.
async fn logs(cloud: &Cloud, node: &str, follow: bool) -> Vec<Result<String, String>> {
    let request = LogsRequest {
        follow,
        ..LogsRequest::default()
    };
    let mut pieces = cloud.fleet.call(node, METHOD_LOGS, request.encode());
    let mut all = Vec::new();
    while let Some(piece) = pieces.recv().await {
        let piece = piece.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        all.push(piece.map_err(|error| error.to_string()));
    }
    all
}

#[tokio::test]
async fn a_node_reads_and_writes_nothing_but_its_own_topics() {
    let (cloud, [a, b]) = Cloud::with(["a", "b"]).await;
    let mut other = Board::open(&cloud, "b", &b, Answers::Whole).await.unwrap();
    let running = tokio::spawn(async move { other.run().await });
    cloud.until("b is live", |cloud| cloud.is_live("b")).await;

    for topic in [
        "m1/d/b", "m1/d/+", "m1/d/#", "#", "+/+/a", "m1/u/+/a", "$SYS/#",
    ] {
        let mut client = cloud.client("a", &a).await.unwrap();
        client.subscribe(topic).await.unwrap();
        assert_refused(&client.last_words().await, topic);
    }
    let wrong_shard = topic_up("a").replace("m1/u/", "m1/u/0");
    for (topic, qos) in [
        (topic_up("b"), QoS::AtMostOnce),
        (topic_down("b"), QoS::AtMostOnce),
        (topic_down("a"), QoS::AtMostOnce),
        (wrong_shard, QoS::AtMostOnce),
        ("x".to_owned(), QoS::AtMostOnce),
        (topic_up("a"), QoS::AtLeastOnce),
    ] {
        let mut client = cloud.client("a", &a).await.unwrap();
        client.publish(&topic, qos, vec![1, 2, 3]).await.unwrap();
        assert_refused(&client.last_words().await, &topic);
    }
    let mut client = cloud.client("a", &a).await.unwrap();
    let mut retained = Publish::new(topic_up("a"), QoS::AtMostOnce, vec![1, 2, 3], None);
    retained.retain = true;
    client.write(&Packet::Publish(retained)).await.unwrap();
    assert_refused(&client.last_words().await, "retained");
    let config = cloud.mqtt_config(Some(&a));
    let refused = cloud.client_with("b", &config, None).await;
    let refused = refused.err().unwrap();
    assert!(refused.contains("ClientIdentifierNotValid"), "{refused}");
    let will = LastWill::new(topic_up("b"), vec![1], QoS::AtMostOnce, false, None);
    let refused = cloud.client_with("a", &config, Some(will)).await;
    assert!(refused.err().unwrap().contains("NotAuthorized"));

    assert!(!running.is_finished(), "b was not touched");
    assert!(cloud.is_live("b"));
    assert_eq!(cloud.events("b", "Disconnected"), 0);
}

/// Goal: a client that connects and never subscribes does not keep its connection, and one that has
/// subscribed does. Method: the runtime's clock is set to just before the deadline, and the last second
/// passes in real time.
#[tokio::test]
async fn a_client_that_does_not_subscribe_loses_its_connection() {
    let (cloud, [a, b]) = Cloud::with(["a", "b"]).await;
    let mut silent = cloud.client("a", &a).await.unwrap();
    let mut subscribed = cloud.client("b", &b).await.unwrap();
    subscribed.subscribe(&topic_down("b")).await.unwrap();
    subscribed.ping().await.unwrap();
    for seconds in [30, 14] {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        subscribed.ping().await.unwrap();
    }
    let last_words = silent.last_words().await;
    assert!(last_words.is_empty(), "{last_words:?}");
    subscribed.ping().await.unwrap();
}

fn assert_refused(last_words: &[Packet], what: &str) {
    let [Packet::Disconnect(disconnect)] = last_words else {
        panic!("{what}: {last_words:?}");
    };
    let code = disconnect.reason_code;
    assert_eq!(code, DisconnectReasonCode::NotAuthorized, "{what}");
}

#[tokio::test]
async fn foreign_expired_unlisted_and_missing_certificates_get_no_link() {
    let (cloud, [a]) = Cloud::with(["a"]).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = identity(&Ca::open(elsewhere.path()).unwrap(), "a", now(), 3_600);
    let expired = identity(&cloud.ca, "a", now() - 61, 60);
    let unlisted = identity(&cloud.ca, "a", now(), 3_600);
    let never_joined = identity(&cloud.ca, "c", now(), 3_600);
    for (what, wrong) in [("foreign", foreign), ("expired", expired)] {
        let error = cloud.client("a", &wrong).await.err().expect(what);
        assert!(error.contains("fatal alert"), "{what}: {error}");
    }
    for (node, wrong) in [("a", unlisted), ("c", never_joined)] {
        let error = cloud.client(node, &wrong).await.err().expect(node);
        assert!(error.contains("CertificateRevoked"), "{node}: {error}");
        assert_eq!(cloud.events(node, "Refused"), 1);
    }
    let config = cloud.mqtt_config(None);
    assert!(cloud.client_with("a", &config, None).await.is_err());
    assert!(cloud.client("a", &a).await.is_ok());
}

/// Goal: a resumed TLS session does not check the certificate again, so its expiry must be checked. Method: a
/// certificate of a few seconds; a host that is too slow to connect within them gets longer ones.
#[tokio::test]
async fn an_expired_certificate_does_not_come_back_by_resumption() {
    for life_s in [3, 12, 48, 192] {
        if is_refused_from_its_end_on(life_s).await {
            return;
        }
    }
    panic!("no link within the life of a certificate");
}

/// `false`: no link was established before the expiry.
async fn is_refused_from_its_end_on(life_s: u64) -> bool {
    let start = now();
    let (cloud, [a]) = Cloud::with_lives([("a", life_s)]).await;
    let end = now() + life_s;
    let config = cloud.mqtt_config(Some(&a));
    if let Err(error) = cloud.client_with("a", &config, None).await {
        assert!(now() >= start + life_s, "not expired yet: {error}");
        return false;
    }
    // The ticket arrives after the handshake; each link leaves one for the next.
    loop {
        let tried = now();
        if cloud.client_with("a", &config, None).await.is_err() {
            break;
        }
        assert!(tried <= end, "expired");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(now() >= start + life_s, "not expired yet");
    let stream = cloud.tls(&config).await.unwrap();
    let kind = stream.get_ref().1.handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::Resumed));
    assert!(cloud.client_with("a", &config, None).await.is_err());
    true
}

/// Goal: a ticket from before its revocation or deletion is useless to a node. Method: its session is
/// resumed, which shows that no certificate was checked, and then it sends CONNECT.
#[tokio::test]
async fn a_refused_node_does_not_come_back_by_resumption() {
    let (cloud, [a, b, c]) = Cloud::with(["a", "b", "c"]).await;
    let nodes = [("a", a, false), ("b", b, false), ("c", c, true)];
    let mut configs = Vec::new();
    for (node, identity, _) in &nodes {
        let config = cloud.mqtt_config(Some(identity));
        cloud.client_with(node, &config, None).await.unwrap();
        configs.push(config);
    }
    assert!(cloud.fleet.revoke("a").await.unwrap());
    assert!(cloud.fleet.delete("b").await.unwrap());
    for ((node, _, comes_back), config) in nodes.iter().zip(configs) {
        let stream = cloud.tls(&config).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::Resumed), "{node}");
        let link = Client::greet(stream, node, None).await;
        assert_eq!(link.is_ok(), *comes_back, "{node}");
        if let Err(error) = link {
            assert!(error.contains("NotAuthorized"), "{node}: {error}");
        }
    }
}

/// Goal: retiring a CA acts at once, on live links and on earlier tickets. Method: a board that cannot
/// renew, connected all the time, and a client with a ticket; both know the old CA only.
#[tokio::test]
async fn a_retired_ca_ends_live_links_and_resumes_none() {
    let (cloud, [a, b]) = Cloud::with(["a", "b"]).await;
    let mut board = Board::open(&cloud, "a", &a, Answers::Whole).await.unwrap();
    let running = tokio::spawn(async move { board.run().await });
    cloud.until("a is live", |cloud| cloud.is_live("a")).await;
    let view = cloud.fleet.rotate_ca().await.unwrap();
    assert_eq!((view.cas.len(), view.depending), (2, 2));
    assert!(cloud.is_live("a") && !running.is_finished());
    // The old CA is accepted, and has signed the cross certificate of the server's new CA.
    let ticket = cloud.mqtt_config(Some(&b));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let stream = cloud.tls(&ticket).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
        Client::greet(stream, "b", None).await.unwrap();
    }
    for wrong in [None, Some(1), Some(3)] {
        let refused = cloud.fleet.retire_ca(wrong).await.unwrap_err();
        assert!(refused.contains("2 nodes have no certificate"), "{refused}");
        assert!(!cloud.view("a").unwrap().revoked);
    }
    let done = cloud.fleet.retire_ca(Some(2)).await.unwrap();
    assert_eq!(done.cut_off, ["a", "b"]);
    let ended = tokio::time::timeout(board::STATE_TIMEOUT, running).await;
    assert!(ended.is_ok(), "the link goes on");
    assert!(cloud.view("a").unwrap().revoked && !cloud.is_live("a"));
    let error = cloud.tls(&ticket).await.err().unwrap().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    assert_eq!(cloud.fleet.cas().phase, "single");
    assert!(!cloud.fleet.retire_ca(None).await.unwrap().retired);
}

#[tokio::test]
async fn revocation_and_deletion_end_live_links_for_good() {
    let (cloud, [a, b, c]) = Cloud::with(["a", "b", "c"]).await;
    let mut boards = Vec::new();
    for (node, identity) in [("a", &a), ("b", &b), ("c", &c)] {
        let mut board = Board::open(&cloud, node, identity, Answers::Whole)
            .await
            .unwrap();
        boards.push(tokio::spawn(async move { board.run().await }));
        cloud.until("live", |cloud| cloud.is_live(node)).await;
    }
    assert!(cloud.fleet.revoke("a").await.unwrap());
    assert!(cloud.fleet.delete("b").await.unwrap());
    let third = boards.pop().unwrap();
    for ended in boards {
        let ended = tokio::time::timeout(board::STATE_TIMEOUT, ended).await;
        assert!(ended.is_ok(), "the link goes on");
    }
    assert!(!cloud.is_live("a"));
    assert!(cloud.view("a").unwrap().revoked);
    assert!(cloud.view("b").is_none());
    for (node, identity) in [("a", &a), ("b", &b)] {
        let error = cloud.client(node, identity).await.err().expect(node);
        assert!(error.contains("CertificateRevoked"), "{error}");
    }
    assert!(cloud.is_live("c") && !third.is_finished());
}

#[tokio::test]
async fn a_token_works_its_count_of_times_until_it_expires() {
    let (cloud, []) = Cloud::with([]).await;
    let token = cloud
        .fleet
        .create_token(TokenSpec::plain(2, 3_600))
        .await
        .unwrap();
    for node in ["a", "b"] {
        let joined = cloud.join(&token, node).await.unwrap();
        let mut board = Board::open(&cloud, node, &joined, Answers::Whole)
            .await
            .unwrap();
        tokio::spawn(async move { board.run().await });
        cloud.until("live", |cloud| cloud.is_live(node)).await;
    }
    assert!(cloud.join(&token, "c").await.is_err());
    // A host that is too slow to join within four seconds gets longer.
    let mut lifetimes = [4, 16, 64, 256].into_iter();
    let (short, end) = loop {
        let life_s = lifetimes
            .next()
            .expect("no join within the life of a token");
        let token = cloud
            .fleet
            .create_token(TokenSpec::plain(1_000, life_s))
            .await
            .unwrap();
        let end = now() + life_s;
        match cloud.join(&token, &format!("early-{life_s}")).await {
            Ok(_) => break (token, end),
            Err(reason) => assert!(now() >= end, "not expired yet: {reason}"),
        }
    };
    while now() <= end {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(cloud.join(&short, "late").await.is_err());
    assert!(
        cloud
            .client("late", &identity(&cloud.ca, "late", now(), 60))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_late_close_of_an_old_connection_does_not_touch_the_new_one() {
    let (cloud, [a]) = Cloud::with(["a"]).await;
    let old = Board::open(&cloud, "a", &a, Answers::Whole).await.unwrap();
    let will = old.will();
    let mut old = old.into_client();
    let mut new = Board::open(&cloud, "a", &a, Answers::Whole).await.unwrap();
    tokio::spawn(async move { new.run().await });
    cloud
        .until("the new one is live", |cloud| cloud.is_live("a"))
        .await;
    // The old one still sends, disconnects, and closes at last.
    for _ in 0..3 {
        // The cloud may have closed it by now.
        let _sent = old
            .publish(&topic_up("a"), QoS::AtMostOnce, will.clone())
            .await;
    }
    let words = old.last_words().await;
    let taken_over = words.iter().any(|packet| {
        matches!(packet, Packet::Disconnect(disconnect)
            if disconnect.reason_code == DisconnectReasonCode::SessionTakenOver)
    });
    assert!(taken_over, "{words:?}");
    drop(old);
    let answer = logs(&cloud, "a", false).await;
    assert_eq!(answer, [Ok("line\n".to_owned())]);
    assert!(cloud.is_live("a"));
    assert!(!cloud.view("a").unwrap().cloned);
}

#[tokio::test]
async fn of_two_boards_with_one_identity_one_keeps_the_link_and_both_are_reported() {
    let (cloud, [a]) = Cloud::with(["a"]).await;
    let cloud = Arc::new(cloud);
    let boards = [0, 1].map(|_| Restless::switch_on(&cloud, "a", &a));
    cloud
        .until("the clone is reported", |cloud| {
            cloud.view("a").is_some_and(|view| view.cloned)
        })
        .await;
    let text = metrics::text(
        &cloud.fleet.views(),
        &Status::default(),
        &cloud.fleet.records(),
        &cloud.fleet.cas(),
    )
    .unwrap();
    // This node's certificate ends within the hour.
    let end = cloud.view("a").unwrap().certificate_not_after;
    assert!(end > now());
    for line in [
        "edge_cloud_node_cloned{node=\"a\"} 1".to_owned(),
        format!("edge_cloud_node_certificate_earliest_end_timestamp_seconds {end}"),
        "edge_cloud_node_certificates_ending_soon 1".to_owned(),
        "edge_cloud_server_certificate_end_timestamp_seconds 4102444800".to_owned(),
        "edge_cloud_ca_end_timestamp_seconds 4102444800".to_owned(),
    ] {
        assert!(text.contains(&line), "{line}: {text}");
    }
    let count = |what: fn(&Restless) -> &AtomicU32| {
        boards
            .each_ref()
            .map(|board| what(board).load(Ordering::SeqCst))
    };
    let links = count(|board| &board.links);
    let refusals = count(|board| &board.refusals);
    let more = async {
        while count(|board| &board.refusals).iter().sum::<u32>() < refusals.iter().sum::<u32>() + 20
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(board::STATE_TIMEOUT, more)
        .await
        .unwrap();
    assert_eq!(
        count(|board| &board.links),
        links,
        "nobody's link has ended"
    );
    assert!(cloud.is_live("a"));
    assert_eq!(cloud.events("a", "Cloned"), 1);
    assert_eq!(logs(&cloud, "a", false).await, [Ok("line\n".to_owned())]);

    // The one that had the link is switched off: the other gets it.
    let holder = usize::from(count(|board| &board.refusals)[1] == refusals[1]);
    boards[holder].off.store(true, Ordering::SeqCst);
    let other = &boards[1 - holder].links;
    let before = other.load(Ordering::SeqCst);
    cloud
        .until("the other one is live", |cloud| {
            cloud.is_live("a") && other.load(Ordering::SeqCst) > before
        })
        .await;
}

/// 30 s of silence pass in real time.
#[tokio::test]
async fn a_call_of_a_silent_node_fails_and_a_followed_log_may_be_silent() {
    let (cloud, [never, half, follow]) = Cloud::with(["never", "half", "follow"]).await;
    let mut tasks = Vec::new();
    for (node, identity, answers) in [
        ("never", never, Answers::Never),
        ("half", half, Answers::Half),
        ("follow", follow, Answers::Half),
    ] {
        let mut board = Board::open(&cloud, node, &identity, answers).await.unwrap();
        tasks.push(tokio::spawn(async move { board.run().await }));
        cloud.until("live", |cloud| cloud.is_live(node)).await;
    }
    let cloud = Arc::new(cloud);
    let following = {
        let cloud = Arc::clone(&cloud);
        tokio::spawn(async move { logs(&cloud, "follow", true).await })
    };
    let silent = Err("the node does not answer".to_owned());
    let (never, half) = tokio::join!(logs(&cloud, "never", false), logs(&cloud, "half", false));
    assert_eq!(never, std::slice::from_ref(&silent));
    assert_eq!(half, [Ok("line\n".to_owned()), silent]);
    assert!(!following.is_finished());
    // Its link is lost, which is not the end of a log.
    tasks.pop().unwrap().abort();
    let followed = tokio::time::timeout(board::STATE_TIMEOUT, following).await;
    let followed = followed.unwrap().unwrap();
    assert_eq!(followed.len(), 2);
    assert!(followed[1].is_err(), "{followed:?}");
}

/// Goal: logs that users follow do not prevent edge-cloud from asking the node to renew its certificate.
/// Method: as many followed logs as are admitted, then the other call.
#[tokio::test]
async fn followed_logs_leave_room_for_a_renewal() {
    let (cloud, [a]) = Cloud::with(["a"]).await;
    let mut board = Board::open(&cloud, "a", &a, Answers::Half).await.unwrap();
    let running = tokio::spawn(async move { board.run().await });
    cloud.until("a is live", |cloud| cloud.is_live("a")).await;
    let follow = LogsRequest {
        follow: true,
        ..LogsRequest::default()
    };
    let mut following = Vec::new();
    for _ in 1..CALLS_MAX {
        let mut pieces = cloud.fleet.call("a", METHOD_LOGS, follow.encode());
        assert_eq!(pieces.recv().await.unwrap().unwrap(), "line\n");
        following.push(pieces);
    }
    let refused = logs(&cloud, "a", true).await;
    let reason = "too many calls of the node are open".to_owned();
    assert_eq!(refused, [Err(reason)]);
    let mut renewal = cloud.fleet.call("a", METHOD_RENEW, Vec::new());
    assert_eq!(renewal.recv().await.unwrap().unwrap(), "line\n");
    assert!(!running.is_finished());
}

/// Goal: a client that opens more connections than are admitted delays only itself. Method: many
/// connections from one address, silent ones and some that handshake without a
/// certificate; nodes connect from another address, each with one attempt.
#[tokio::test]
async fn a_flood_from_one_address_keeps_no_node_out() {
    let (mut cloud, [a, b]) = Cloud::admitting(20, [("a", 3_600), ("b", 3_600)]).await;
    let mut board = Board::open(&cloud, "b", &b, Answers::Whole).await.unwrap();
    let running = tokio::spawn(async move { board.run().await });
    cloud.until("b is live", |cloud| cloud.is_live("b")).await;
    let flood = Arc::new(Cloud::at(
        cloud.address,
        cloud.data(),
        Arc::clone(&cloud.fleet),
    ));
    cloud.source = [127, 0, 0, 2].into();
    let mut tasks = Vec::new();
    for shakes in [true, false, false, false] {
        let flood = Arc::clone(&flood);
        tasks.push(tokio::spawn(async move {
            let mut open = std::collections::VecDeque::new();
            loop {
                if shakes {
                    let config = flood.mqtt_config(None);
                    drop(flood.tls(&config).await);
                } else if let Ok(stream) = tokio::net::TcpStream::connect(flood.address).await {
                    open.push_front(stream);
                    open.truncate(200);
                }
                tokio::task::yield_now().await;
            }
        }));
    }
    while cloud.events("", "AdmissionQueueFull") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for attempt in 0..10 {
        let client = cloud.client("a", &a).await;
        assert!(client.is_ok(), "{attempt}: {:?}", client.err());
    }
    assert!(!running.is_finished() && cloud.is_live("b"));
    for task in tasks {
        assert!(!task.is_finished());
        task.abort();
    }
}
