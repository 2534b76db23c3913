//! Makes a cluster: sealing key, certificate authority, first replica, first owner.

use std::path::PathBuf;
use std::sync::Arc;

use tollway_proto::command::{Command, InitCluster, Member, Outcome, Role};
use tollway_proto::private_file;
use tollway_shared::ids::{AdminId, ClusterId, ReplicaId};
use tollway_shared::secret::Secret;

use super::home::{self, Home};
use super::{StartFault, hosts, raft_config};
use crate::admin::{entropy, new_admin};
use crate::clock;
use crate::config::Config;
use crate::identity::authority::LEAF_LIFE;
use crate::identity::connect::MutualTls;
use crate::identity::{Authority, LiveCertificate, Material, PeerIdentity, material, tls};
use crate::raft::{self, Proposal};

/// The id of the replica that makes a cluster; the state counts on from it.
const FIRST: ReplicaId = ReplicaId(1);
/// The id of the first owner.
const OWNER: &str = "owner";

/// A new cluster.
#[derive(Debug)]
pub struct Initialized {
    /// Its id.
    pub cluster: ClusterId,
    /// The owner's admin key. It is not stored anywhere.
    pub admin_key: Secret<String>,
    /// The authority's certificate, for clients.
    pub authority_file: PathBuf,
}

/// Whether the data folder holds a replica.
pub fn exists(config: &Config) -> bool {
    Home::exists(&config.data_dir)
}

/// Makes a cluster of one replica in the data folder. It does not run when this returns.
pub async fn init(config: &Config) -> Result<Initialized, StartFault> {
    config.check()?;
    let folder = config.data_dir.display().to_string();
    if exists(config) {
        return Err(StartFault::Exists(folder));
    }
    if config.data_dir.join("raft").exists() {
        return Err(StartFault::Unfinished(format!("{folder}/raft")));
    }
    home::make_folder(&config.data_dir)?;
    let root = home::make_key(config)?;
    let id = ClusterId::trusted(format!("c-{}", &hex::encode(entropy())[..16]));
    let authority = Authority::create(id.clone(), clock::now())?;
    let member = Member {
        peer_address: config.peer_address(config.peer.listen),
        admin_url: config.admin_url(config.admin.listen),
    };
    let (key_pem, request) = material::request()?;
    let identity = PeerIdentity::Replica(FIRST);
    let material = Material {
        certificate_pem: authority.issue(&request, &identity, &hosts(&member), clock::now(), LEAF_LIFE)?,
        key_pem,
        authority_pem: authority.certificate_pem().to_owned(),
    };
    material.store(&config.data_dir)?;
    let authority_file = config.data_dir.join("ca.pem");
    private_file::write(&authority_file, material.authority_pem.as_bytes())?;

    let home = Home {
        cluster: id.clone(),
        replica: FIRST,
        seal_check: home::seal_check(&root),
        voted: true,
        seeds: Vec::new(),
    };
    let live = LiveCertificate::new(&material)?;
    let connector = MutualTls::new(tls::peer_client(live, &material.authority_pem)?);
    let cluster = raft::start(
        raft_config(config, &home),
        Arc::new(connector),
        Arc::new(clock::now),
    )
    .await
    .map_err(StartFault::Log)?;
    let (admin_key, admin) = new_admin(&root, AdminId::trusted(OWNER), String::new(), Role::Owner);
    let command = Command::InitCluster(InitCluster {
        cluster: id.clone(),
        authority_pem: material.authority_pem.clone(),
        authority_key: authority.sealed_key(&root),
        admin,
    });
    let made = async {
        cluster.init(member).await?;
        Ok::<_, StartFault>(cluster.propose(Proposal::system(command)).await?)
    };
    let made = made.await;
    cluster.shutdown().await;
    if let Outcome::Refused(refusal) = made? {
        return Err(StartFault::Join(refusal.to_string()));
    }
    home.store(&config.data_dir)?;
    Ok(Initialized {
        cluster: id,
        admin_key: Secret::new(admin_key),
        authority_file,
    })
}
