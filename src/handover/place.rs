//! Where a running server and the one that takes its place find each other: a local socket in a
//! directory that is its user's alone.
//!
//! The path is `--upgrade-socket`, or one that both derive from the first control address:
//! `$RUNTIME_DIRECTORY/upgrade/127.0.0.1:8081`, with `$XDG_RUNTIME_DIR/fanwave` or
//! `/tmp/fanwave-UID` where there is no runtime directory.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::ControlAddress;
use crate::config::limits::HAND_OVER_BACKLOG;

/// The file of the socket where a server waits for the one that takes its place. It goes with the
/// server, unless it was left to that one.
#[derive(Debug)]
pub struct Place {
    /// Its path.
    pub path: PathBuf,
    /// The file stays.
    pub is_left: bool,
}

impl Place {
    /// Listens at `path`.
    pub fn open(path: &Path) -> io::Result<(Place, OwnedFd)> {
        let listener = listen(path)?;
        Ok((Place { path: path.to_path_buf(), is_left: false }, listener))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_left {
            // Somebody may have taken it away.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A path of a socket has at most 107 bytes (`sun_path`, unix(7)); so many are left for the name.
const NAME_BYTES_MAX: usize = 64;

/// The path for a server whose first control address this is. `environment` gives variables.
pub fn path(control: &ControlAddress, environment: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    // systemd writes several directories with colons between them.
    let runtime = set("RUNTIME_DIRECTORY").map(|value| {
        let first = value.to_string_lossy().split(':').next().unwrap_or_default().to_string();
        Path::new(&first).join("upgrade")
    });
    let directory = runtime.or_else(|| Some(Path::new(&set("XDG_RUNTIME_DIR")?).join("fanwave")));
    let directory = directory
        .unwrap_or_else(|| PathBuf::from(format!("/tmp/fanwave-{}", rustix::process::geteuid().as_raw())));
    directory.join(name(control))
}

/// A file name for an address.
fn name(control: &ControlAddress) -> String {
    let text = control.to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".:[]-".contains(c);
    let name: String = text.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    use sha1::Digest;
    let hash = sha1::Sha1::digest(text.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Listens at `path`, in its directory, which is made if it is missing. A socket that nobody
/// listens on any more is replaced.
fn listen(path: &Path) -> io::Result<OwnedFd> {
    let directory = own_directory(path)?;
    if !directory.exists() {
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
    }
    check_directory(&directory)?;
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.cloexec().nonblocking(), None)?;
    match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if !is_deserted(path)? {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "a process listens there"));
            }
            std::fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        result => result?,
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(HAND_OVER_BACKLOG)?;
    Ok(socket.into())
}

/// Connects to the server that listens at `path`.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    check_directory(&own_directory(path)?)?;
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.cloexec().nonblocking(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// The directory of the socket.
fn own_directory(path: &Path) -> io::Result<PathBuf> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    let told = || io::Error::new(io::ErrorKind::InvalidInput, "write a path with a directory of its own");
    directory.map(Path::to_path_buf).ok_or_else(told)
}

/// Fails unless a directory is our user's alone, so that nobody else can put a socket there.
fn check_directory(directory: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(directory)?;
    let wrong = match () {
        () if !found.is_dir() => "is no directory",
        () if found.uid() != rustix::process::geteuid().as_raw() => "belongs to another user",
        () if found.mode() & 0o077 != 0 => "is open to other users; its mode has to be 0700",
        () => return Ok(()),
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {wrong}", directory.display())))
}

/// True if there is a socket that nobody listens on.
fn is_deserted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket"));
    }
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET.cloexec().nonblocking(), None)?;
    // unix(7): ECONNREFUSED says that no listening socket has this address.
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    Ok(socket.connect(&SockAddr::unix(path)?).is_err_and(refused))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is gone when the test is over.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("fanwave-place-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a place for files");
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn both_processes_find_the_same_place() {
        let tcp: ControlAddress = "127.0.0.1:8081".parse().expect("an address");
        let unix = |path: &str| ControlAddress::Unix(path.into());
        let with = |name: &'static str, value: &'static str| {
            move |asked: &str| (asked == name).then(|| OsString::from(value))
        };
        let runtime = with("RUNTIME_DIRECTORY", "/run/fanwave:/run/more");
        assert_eq!(path(&tcp, runtime), Path::new("/run/fanwave/upgrade/127.0.0.1:8081"));
        let session = with("XDG_RUNTIME_DIR", "/run/user/7");
        assert_eq!(path(&tcp, session), Path::new("/run/user/7/fanwave/127.0.0.1:8081"));
        let found = path(&unix("/run/a.sock"), session);
        assert_eq!(found, Path::new("/run/user/7/fanwave/unix:_run_a.sock"));
        let uid = rustix::process::geteuid().as_raw();
        let long = path(&unix(&format!("/run/{}", "x".repeat(90))), |_| None);
        assert_eq!(long.parent(), Some(Path::new(&format!("/tmp/fanwave-{uid}"))));
        assert_eq!(long.file_name().expect("a name").len(), 40);
    }

    #[test]
    fn the_socket_is_our_users_alone_and_one_that_was_left_behind_is_replaced() {
        let scratch = Scratch::new("alone");
        let path = scratch.0.join("upgrade").join("socket");
        let listener = listen(&path).expect("a socket");
        let mode = |path: &Path| std::fs::symlink_metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!((mode(path.parent().expect("its own")), mode(&path)), (0o700, 0o600));
        connect(&path).expect("somebody listens");
        assert_eq!(listen(&path).expect_err("in use").kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert_eq!(connect(&path).expect_err("nobody").kind(), io::ErrorKind::ConnectionRefused);
        listen(&path).expect("the place of the former one");
        std::fs::remove_file(&path).and_then(|()| std::fs::write(&path, "mine")).expect("a file");
        assert_eq!(listen(&path).expect_err("a file").kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_directory_that_others_may_use_is_refused() {
        let scratch = Scratch::new("open");
        std::fs::set_permissions(&scratch.0, std::fs::Permissions::from_mode(0o755)).expect("ours");
        for refused in [listen(&scratch.0.join("socket")), connect(&scratch.0.join("socket"))] {
            let error = refused.expect_err("open to others");
            assert!(error.to_string().ends_with("its mode has to be 0700"), "{error}");
        }
        assert!(listen(Path::new("socket")).is_err(), "no directory of its own");
    }
}
