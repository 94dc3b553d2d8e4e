//! A network namespace for each store, all of them on one bridge with this process.
//!
//! Owns the namespaces, the bridge and the cables between. Needs root and iproute2; no firewall: a way is
//! cut by giving the other store a hardware address that nobody has. So packets of one direction are
//! lost without a word, and those of the other arrive.

use crate::ChaosError;
use crate::place::{bridge, command, namespace};
use std::net::SocketAddr;

/// Of every store, in its own namespace.
const PORT: u16 = 50051;
const HTTP_PORT: u16 = 50052;
/// Nobody's: locally administered.
const NOBODY: &str = "02:00:00:00:de:ad";

/// The namespaces; removed when this is dropped.
pub struct Namespaces {
    count: usize,
    /// `10.213.N`.
    net: String,
}

impl Namespaces {
    /// Makes them.
    ///
    /// # Errors
    ///
    /// Why it cannot be done here: not root, no iproute2, a kernel without bridges.
    pub fn make(count: usize) -> Result<Namespaces, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".to_owned());
        }
        let used = command("ip -4 -o addr show")?;
        let first = std::process::id() % 256;
        let net = (first..first + 256)
            .map(|turn| format!("10.213.{}", turn % 256))
            .find(|net| !used.contains(&format!(" {net}.")))
            .ok_or("every network 10.213.N.0/24 is in use")?;
        // From here on dropped, and so removed, whatever fails.
        let namespaces = Namespaces { count, net };
        namespaces.connect()?;
        Ok(namespaces)
    }

    fn connect(&self) -> Result<(), String> {
        let (net, bridge) = (&self.net, bridge());
        command(&format!("ip link add {bridge} type bridge"))?;
        command(&format!("ip addr add {net}.254/24 dev {bridge}"))?;
        command(&format!("ip link set {bridge} up"))?;
        for store in 0..self.count {
            let (namespace, number) = (namespace(store), store + 1);
            let cable = format!("{bridge}v{number}");
            command(&format!("ip netns add {namespace}"))?;
            command(&format!(
                "ip link add {cable} type veth peer name eth0 netns {namespace}"
            ))?;
            command(&format!("ip link set {cable} master {bridge} up"))?;
            command(&format!(
                "ip -n {namespace} addr add {net}.{number}/24 dev eth0"
            ))?;
            command(&format!("ip -n {namespace} link set eth0 up"))?;
            command(&format!("ip -n {namespace} link set lo up"))?;
        }
        Ok(())
    }

    /// Where clients and stores dial a store.
    pub fn addr(&self, store: usize) -> SocketAddr {
        self.at(store, PORT)
    }

    /// Where probes dial it.
    pub fn http_addr(&self, store: usize) -> SocketAddr {
        self.at(store, HTTP_PORT)
    }

    fn at(&self, store: usize, port: u16) -> SocketAddr {
        let octet = |text: &str| text.parse().unwrap_or_default();
        let mut octets = self.net.split('.').map(octet);
        let mut next = || octets.next().unwrap_or_default();
        SocketAddr::from(([next(), next(), next(), store as u8 + 1], port))
    }

    /// What makes a process run in the namespace of a store.
    pub fn wrapper(&self, store: usize) -> Vec<String> {
        vec![
            "nsenter".to_owned(),
            format!("--net=/run/netns/{}", namespace(store)),
        ]
    }

    /// Packets of `from` to `to` are lost.
    ///
    /// # Errors
    ///
    /// What `ip` said.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), ChaosError> {
        let (namespace, ip) = (namespace(from), self.at(to, 0).ip());
        command(&format!(
            "ip -n {namespace} neigh replace {ip} lladdr {NOBODY} dev eth0 nud permanent"
        ))
        .map(drop)
        .map_err(ChaosError::Harness)
    }

    /// No packets are lost any more.
    ///
    /// # Errors
    ///
    /// What `ip` said.
    pub fn heal(&self) -> Result<(), ChaosError> {
        for from in 0..self.count {
            let namespace = namespace(from);
            let flush = format!("ip -n {namespace} neigh flush nud permanent dev eth0");
            command(&flush).map_err(ChaosError::Harness)?;
        }
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // The cables go with their ends.
        for store in 0..self.count {
            let _ = command(&format!("ip netns del {}", namespace(store)));
        }
        let _ = command(&format!("ip link del {}", bridge()));
    }
}
