//! The `vip` check: a TCP connection to a VIP through the tunnel to one backend, with an optional HTTP
//! request. It covers tunnel, redirect program, VIP address and listener.

use super::{CurrentStep, Failure, http, vip_tunnel::VipTunnel};
use crate::check::{Target, VipCheck};

pub(super) async fn run(
    target: &Target,
    vip: &VipCheck,
    tunnel: &VipTunnel,
    step: &CurrentStep,
) -> Result<(), Failure> {
    let stream = tunnel.connect(target, vip, step).await?;
    match &vip.http {
        Some(http) => http::exchange(stream, target, http, step).await,
        None => Ok(()),
    }
}
