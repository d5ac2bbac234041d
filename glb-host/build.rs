//! Builds the BPF programs, so that every binary carries them inside.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?)
        .parent()
        .ok_or("the crate is not inside the workspace")?
        .to_owned();
    let out = PathBuf::from(env::var("OUT_DIR")?);

    println!("cargo::rerun-if-env-changed={}", bpf_build::COMPILER_VARIABLE);
    for package in ["glb-ebpf", "glb-common"] {
        println!("cargo::rerun-if-changed={}", root.join(package).join("Cargo.toml").display());
        for file in bpf_build::sources(&root.join(package).join("src"))? {
            println!("cargo::rerun-if-changed={}", file.display());
        }
        println!("cargo::rerun-if-changed={}", root.join(package).join("src").display());
    }

    let built = bpf_build::find_compiler().and_then(|compiler| {
        let plain = bpf_build::build(&root, &shared(&out, "bpf"), &compiler, &[])?;
        let features = [bpf_build::TRACE_FEATURE];
        let traced = bpf_build::build(&root, &shared(&out, "bpf-trace"), &compiler, &features)?;
        Ok((plain, traced))
    });
    let (plain, traced) = match built {
        Ok(folders) => folders,
        Err(error) => {
            // A plain message: the Debug form of main's result would hide the remedy.
            for line in error.to_string().lines() {
                println!("cargo::error={line}");
            }
            return Err(
                "the BPF programs were not built; `./x setup` installs what is missing".into()
            );
        }
    };
    for program in ["glb-bench-bpf", "glb-director-bpf", "glb-redirect-bpf"] {
        fs::copy(plain.join(program), out.join(program))?;
    }
    for program in ["glb-director-bpf", "glb-redirect-bpf"] {
        fs::copy(traced.join(program), out.join(format!("{program}-trace")))?;
    }
    Ok(())
}

/// target/`name`, where every build of this workspace (debug, release, with or without tests) finds
/// what another one compiled: the folder of `out` belongs to one of them only.
fn shared(out: &Path, name: &str) -> PathBuf {
    let profile = out.ancestors().find(|folder| folder.ends_with("build")).and_then(Path::parent);
    profile.and_then(Path::parent).unwrap_or(out).join(name)
}
