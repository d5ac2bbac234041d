//! What a backend serves: a page that names it, and git over HTTP.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    command,
    interrupt::wait,
    kernel::{self, LISTEN},
    plan::Node,
    process::{Process, wait_for_file},
    repository,
    topology::Lab,
};

/// nginx, fcgiwrap and git-http-backend of one backend.
#[derive(Debug)]
pub struct WebServer {
    /// Ends before what it leans on.
    _nginx: Process,
    _fcgiwrap: Process,
}

impl WebServer {
    /// Serves on `node`, port 80 of every address: `/` names the node, and `/git/NAME` is the
    /// repository `NAME` below `repositories`. Answers when this returns.
    ///
    /// # Errors
    /// When a program is missing or does not start.
    pub fn start(lab: &Lab, node: Node, repositories: &Path) -> Result<Self> {
        command::require(&[("nginx", "nginx"), ("fcgiwrap", "fcgiwrap"), ("git", "git")])?;
        let folder = lab.folder(node)?;
        let netns = lab.netns(node)?;

        let socket = folder.join("fcgiwrap.sock");
        let mut fcgiwrap = repository::isolated(netns.command("fcgiwrap"));
        fcgiwrap.args(["-c", "16", "-s", &format!("unix:{}", socket.display())]);
        let fcgiwrap = lab.spawn(node, "fcgiwrap", &mut fcgiwrap)?;
        wait_for_file(&socket)?;

        let config = folder.join("nginx.conf");
        fs::write(&config, nginx_config(node, &folder, repositories)?)?;
        let mut nginx = netns.command("nginx");
        nginx.arg("-p").arg(&folder).arg("-c").arg(&config).arg("-e").arg("stderr");
        let mut nginx = lab.spawn(node, "nginx", &mut nginx)?;
        wait(&format!("nginx on {node}"), Duration::from_secs(5), || {
            if let Some(status) = nginx.ended()? {
                bail!("nginx on {node} ended with {status}: {}", nginx.log()?.trim());
            }
            let sockets = kernel::tcp_sockets(netns)?;
            let listeners = sockets.iter().filter(|s| s.state == LISTEN && s.local.port() == 80);
            Ok((listeners.count() >= 2).then_some(()))
        })?;
        Ok(Self { _nginx: nginx, _fcgiwrap: fcgiwrap })
    }
}

fn nginx_config(node: Node, folder: &Path, repositories: &Path) -> Result<String> {
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
