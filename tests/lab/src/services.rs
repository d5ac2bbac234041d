//! The services of a backend: a page with the node's name, and git over HTTP.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    command,
    daemons::{Daemon, Program},
    kernel::{self, LISTEN},
    netns::Netns,
    plan::Node,
    repository,
    topology::Lab,
};

/// nginx, fcgiwrap and git-http-backend of one backend.
#[derive(Debug)]
pub struct WebServer {
    /// Ends before the services that it depends on.
    pub(crate) nginx: Daemon,
    pub(crate) fcgiwrap: Daemon,
}

impl WebServer {
    /// Serves on `node`, port 80 of every address: `/` returns the node's name, and `/git/NAME` is
    /// the repository `NAME` below `repositories`. The services answer when this function returns.
    ///
    /// # Errors
    /// When a program is missing or does not start.
    pub fn start(lab: &Lab, node: Node, repositories: &Path) -> Result<Self> {
        command::require(&[("nginx", "nginx"), ("fcgiwrap", "fcgiwrap"), ("git", "git")])?;
        let mut fcgiwrap = Daemon::fcgiwrap(lab, node)?;
        fcgiwrap.start(lab)?;
        let mut nginx = Daemon::nginx(lab, node, repositories)?;
        nginx.start(lab)?;
        Ok(Self { nginx, fcgiwrap })
    }

    /// Opens the web server of a lab that another process started.
    pub(crate) fn adopt(lab: &Lab, node: Node) -> Result<Self> {
        let nginx = Daemon::adopt(lab, Program::Nginx, node)?;
        Ok(Self { nginx, fcgiwrap: Daemon::adopt(lab, Program::Fcgiwrap, node)? })
    }
}

/// Builds the command that starts fcgiwrap.
pub(crate) fn fcgiwrap(lab: &Lab, node: Node) -> Result<Command> {
    let socket = fcgiwrap_socket(lab, node)?;
    // A killed fcgiwrap leaves its socket, and a new one does not replace it.
    fs::remove_file(&socket).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    let mut fcgiwrap = repository::isolated(lab.netns(node)?.command("fcgiwrap"));
    fcgiwrap.args(["-c", "16", "-s", &format!("unix:{}", socket.display())]);
    Ok(fcgiwrap)
}

/// The socket of fcgiwrap.
pub(crate) fn fcgiwrap_socket(lab: &Lab, node: Node) -> Result<PathBuf> {
    Ok(lab.folder(node)?.join("fcgiwrap.sock"))
}

/// Builds the command that starts nginx.
pub(crate) fn nginx(lab: &Lab, node: Node, config: &Path) -> Result<Command> {
    let mut nginx = lab.netns(node)?.command("nginx");
    nginx.arg("-p").arg(lab.folder(node)?).arg("-c").arg(config).args(["-e", "stderr"]);
    Ok(nginx)
}

/// Returns whether port 80 is open over IPv4 and IPv6.
pub(crate) fn listens(netns: &Netns) -> Result<bool> {
    let sockets = kernel::tcp_sockets(netns)?;
    let listeners = sockets.iter().filter(|s| s.state == LISTEN && s.local.port() == 80);
    Ok(listeners.count() >= 2)
}

pub(crate) fn nginx_config(node: Node, folder: &Path, repositories: &Path) -> Result<String> {
    let folder = folder.display();
    let mut parameters = String::new();
    for (name, value) in repository::ENVIRONMENT {
        parameters += &format!("      fastcgi_param {name} \"{value}\";\n");
    }
    Ok(format!(
        r#"daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log {folder}/access.log;
  default_type text/plain;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 80;
    listen [::]:80 ipv6only=on;
    location = / {{ return 200 "{node}\n"; }}
    location ~ ^/git(/.*)$ {{
      client_max_body_size 0;
      fastcgi_request_buffering off;
      # The repository is read as fast as the client takes it, not into a file first.
      fastcgi_max_temp_file_size 0;
      fastcgi_buffers 16 64k;
      fastcgi_busy_buffers_size 128k;
      fastcgi_read_timeout 600;
      fastcgi_param SCRIPT_FILENAME {program};
      fastcgi_param GIT_PROJECT_ROOT {root};
      fastcgi_param GIT_HTTP_EXPORT_ALL "";
      fastcgi_param PATH_INFO $1;
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param SERVER_PROTOCOL $server_protocol;
      fastcgi_param REMOTE_ADDR $remote_addr;
      fastcgi_param PATH "{path}";
{parameters}      fastcgi_pass unix:{folder}/fcgiwrap.sock;
    }}
  }}
}}
"#,
        program = http_backend()?.display(),
        root = repositories.display(),
        path = command::search_path().to_string_lossy(),
    ))
}

fn http_backend() -> Result<PathBuf> {
    let folder = command::output(repository::git().arg("--exec-path"))?;
    let program = Path::new(folder.trim()).join("git-http-backend");
    if !program.is_file() {
        bail!("git on this machine comes without {}", program.display());
    }
    program.canonicalize().context("git-http-backend")
}
