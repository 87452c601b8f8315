//! Files that change by themselves, one after the other, or all at once behind a link.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xks_harness::token::PIN;
use xks_harness::{Pki, Proxy, Setup, SoftHsm};

use super::rig::{Reloading, listed};

const WATCHED: &str = "[reload]\nwatch_interval_ms = 100\n";

async fn wait_for_generation(proxy: &Proxy, generation: u32) {
    let wanted = format!("\nxks_config_generation {generation}\n");
    proxy.wait_for("/metrics", |_, text| text.contains(&wanted)).await;
}

#[tokio::test]
async fn each_file_that_the_configuration_names_is_watched() {
    let secret = "main+test+secret/main+test+secret/main+test+1";
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("secret"), secret).unwrap();
    fs::write(folder.path().join("pin"), PIN).unwrap();
    let pin = format!("pin = {{ file = {:?} }}", folder.path().join("pin").display().to_string());
    let proxy = Proxy::start(&Setup { pin, more: WATCHED.to_owned(), ..Setup::default() }).await;
    let config = proxy.folder().join("xks-proxy.toml");
    let text = fs::read_to_string(&config).unwrap();
    let place = format!("{{ file = {:?} }}", folder.path().join("secret").display().to_string());
    fs::write(&config, text.replace(&format!("\"{secret}\""), &place)).unwrap();
    wait_for_generation(&proxy, 2).await;
    fs::write(folder.path().join("secret"), secret.replace("main", "more")).unwrap();
    wait_for_generation(&proxy, 3).await;
    fs::write(folder.path().join("pin"), format!("{PIN}\n")).unwrap();
    wait_for_generation(&proxy, 4).await;
    let another = Pki::shared().another();
    fs::write(proxy.folder().join("ecdsa.pem"), another.certificate).unwrap();
    fs::write(proxy.folder().join("ecdsa.key"), another.key).unwrap();
    wait_for_generation(&proxy, 5).await;
}

#[tokio::test]
async fn a_certificate_that_does_not_fit_its_key_yet_is_waited_for() {
    let reloading = Reloading::start(Setup::default()).await;
    let another = Pki::shared().another();
    let (chain, key) =
        (reloading.proxy.folder().join("ecdsa.pem"), reloading.proxy.folder().join("ecdsa.key"));
    let outcome = reloading
        .outcome_of(|this| {
            fs::write(&chain, &another.certificate).unwrap();
            this.proxy.signal("HUP");
            std::thread::sleep(Duration::from_millis(400));
            fs::write(&key, &another.key).unwrap();
        })
        .await;
    assert_eq!(outcome, "ok");
    // For ever it is not.
    let third = Pki::shared().another();
    fs::write(&chain, &third.certificate).unwrap();
    assert_eq!(reloading.reload().await, "faulty");
    assert!(reloading.verbose().await.contains("does not belong to the first certificate"));
    reloading.client().await.encrypt("demo").await.ok();
}

/// Lays a folder out as Kubernetes mounts a ConfigMap: files are links through `..data` to a folder of one version.
fn publish(mount: &Path, version: &str, write: impl FnOnce(&Path)) {
    let folder = mount.join(format!("..{version}"));
    fs::create_dir(&folder).unwrap();
    write(&folder);
    let link = mount.join("..data_tmp");
    symlink(format!("..{version}"), &link).unwrap();
    fs::rename(link, mount.join("..data")).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name();
        let file = mount.join(&name);
        if fs::symlink_metadata(&file).is_err() {
            symlink(Path::new("..data").join(name), file).unwrap();
        }
    }
}

#[tokio::test]
async fn a_swap_of_the_data_link_is_one_change() {
    let setup = Setup { more: WATCHED.to_owned(), ..Setup::default() };
    let token = Arc::new(SoftHsm::with_keys());
    let mount = tempfile::tempdir().unwrap();
    publish(mount.path(), "1", |folder| drop(setup.write(folder, &token)));
    let proxy = Proxy::start_in(mount.path(), Arc::clone(&token));
    proxy.wait_until_ready().await;
    let next = Setup { keys: setup.keys.clone() + &listed("new", "demo-3"), ..setup };
    token.generate("demo-3", &[]);
    publish(mount.path(), "2", |folder| {
        let _ = next.write(folder, &token);
        let another = Pki::shared().another();
        fs::write(folder.join("ecdsa.pem"), another.certificate).unwrap();
        fs::write(folder.join("ecdsa.key"), another.key).unwrap();
    });
    fs::remove_dir_all(mount.path().join("..1")).unwrap();
    wait_for_generation(&proxy, 2).await;
    let reloads = proxy.metric("xks_config_reloads_total{outcome=\"faulty\"}").await;
    assert_eq!(reloads, 0.0);
    let body = xks_harness::request::encrypt_body(b"x", None, false);
    let request = xks_harness::XksRequest::encrypt(&xks_harness::proxy::main_store(), "new", &body);
    proxy.connect(xks_harness::Http::One).await.send(&request).await.ok();
}

#[tokio::test]
async fn a_pin_that_was_refused_is_tried_again_once_it_is_another() {
    let setup = Setup {
        pin: "pin = \"wrong-pin\"".to_owned(),
        more: super::rig::UNWATCHED.to_owned(),
        ..Setup::default()
    };
    let proxy = Proxy::start_without_waiting(&setup, Arc::new(SoftHsm::with_keys()));
    proxy.wait_for("/readyz?verbose", |_, text| text.contains("refused the PIN")).await;
    let setup = Setup { pin: format!("pin = \"{PIN}\""), ..setup };
    let reloading = Reloading { proxy, setup };
    assert_eq!(reloading.reload_with(&reloading.setup).await, "ok");
    reloading.proxy.wait_until_ready().await;
    reloading.client().await.encrypt("demo").await.ok();
}
