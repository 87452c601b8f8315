//! Small answers leave at once (TCP_NODELAY).

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xks_harness::client::{tls, tls_config};
use xks_harness::{Http, Proxy, Setup};

/// How long Linux holds back an acknowledgement that it hopes to send along with data.
const DELAYED_ACK: Duration = Duration::from_millis(40);

/// Two requests at once have two answers. Without TCP_NODELAY the second answer waits until the first is acknowledged,
/// and the client holds that acknowledgement back: every round would take [`DELAYED_ACK`]. One that does not is proof,
/// however busy the machine.
#[tokio::test]
async fn an_answer_does_not_wait_for_the_acknowledgement_of_the_one_before() {
    let proxy = Proxy::start(&Setup::default()).await;
    let mut stream = tls(proxy.address, tls_config(Http::One)).await.unwrap();
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let tcp: &TcpStream = stream.get_ref().0;
        tcp.set_quickack(false).unwrap();
        let began_at = Instant::now();
        stream.write_all(&b"GET /ping HTTP/1.1\r\nhost: h\r\n\r\n".repeat(2)).await.unwrap();
        let mut answers = Vec::new();
        while answers.windows(6).filter(|window| window == b"ready\n").count() < 2 {
            assert!(stream.read_buf(&mut answers).await.unwrap() > 0);
        }
        quickest = quickest.min(began_at.elapsed());
    }
    assert!(quickest < DELAYED_ACK * 3 / 4, "{quickest:?}");
}
