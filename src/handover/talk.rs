//! What the two processes say to each other: packets of JSON on a local socket that keeps them
//! apart (`SOCK_SEQPACKET`, unix(7)), some with descriptors.
//!
//! `Hello` and `Refused` are as they are in every version, so that processes of different formats
//! can tell each other.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::config::ControlAddress;
use crate::config::limits::{HAND_OVER_DESCRIPTORS_MAX, HAND_OVER_PACKET_BYTES_MAX};
use crate::event::Epoch;

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// From the new process: who it is.
    Hello {
        /// The format that it takes.
        format: u32,
        /// Its version.
        version: String,
    },
    /// From either: it goes no further, and the old process goes on as it was.
    Refused {
        /// Why, in one line.
        why: String,
    },
    /// From the old process: what it has.
    Offer(Offer),
    /// From the old process, behind the offer: the next listeners of it, with as many descriptors.
    Listeners,
    /// From the new process: it can begin as soon as it has the state.
    Ready,
    /// From the old process, which takes no publishes any more: the state, with its memfd.
    State,
    /// From the new process: its shards have what the old one's have.
    Restored,
    /// From the old process, which accepts nobody any more.
    Go,
    /// From the new process: it is the server from now on.
    Taken,
}

/// What the old process has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Its epoch, in which sequences go on.
    pub epoch: u64,
    /// Its process id.
    pub pid: u32,
    /// Listeners of the data plane.
    pub data: Vec<DataOffer>,
    /// Listeners of the control plane, one descriptor each, behind those of the data plane.
    pub control: Vec<ControlOffer>,
}

/// One address of the data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataOffer {
    /// As it was configured; the port may be 0.
    pub configured: SocketAddr,
    /// As it is.
    pub bound: SocketAddr,
    /// How many descriptors it has, one for each shard.
    pub listeners: usize,
    /// The service manager has passed it.
    pub passed: bool,
}

/// One address of the control plane, written as in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlOffer {
    /// As it was configured.
    pub configured: String,
    /// As it is.
    pub bound: String,
    /// The service manager has passed it.
    pub passed: bool,
}

impl Offer {
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// Descriptors that come with it.
    pub fn descriptors(&self) -> usize {
        self.data.iter().map(|offer| offer.listeners).fold(self.control.len(), usize::saturating_add)
    }
}

impl ControlOffer {
    /// An address and its listener, as it is told.
    pub fn new(configured: &ControlAddress, bound: &ControlAddress, passed: bool) -> ControlOffer {
        ControlOffer { configured: configured.to_string(), bound: bound.to_string(), passed }
    }
}

/// Why a hand-over goes no further. The old process goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The other one said so.
    #[error("{0}")]
    Refused(String),
    /// The other one is gone.
    #[error("the other process has closed the connection")]
    Gone,
    /// The other one did not say its next word in time.
    #[error("the other process did not answer within {0} ms")]
    Silent(u64),
    /// The other one said something else than what it should.
    #[error("the other process said what does not belong here: {0}")]
    Unexpected(String),
    /// It belongs to somebody else.
    #[error("the other process is of user {0}, and only user {1} may hand over")]
    Stranger(u32, u32),
    /// The socket failed.
    #[error("cannot speak to the other process: {0}")]
    Failed(#[from] io::Error),
}

impl From<Errno> for TalkError {
    fn from(errno: Errno) -> TalkError {
        match errno {
            Errno::PIPE | Errno::CONNRESET => TalkError::Gone,
            errno => TalkError::Failed(errno.into()),
        }
    }
}

/// A connection between the two processes. No call blocks but those with a limit.
#[derive(Debug)]
pub struct Talk {
    socket: OwnedFd,
}

impl AsFd for Talk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Talk {
    /// A connected socket, if who is at its other end is of our user.
    pub fn new(socket: OwnedFd) -> Result<Talk, TalkError> {
        let (peer, ours) =
            (sockopt::socket_peercred(&socket)?.uid.as_raw(), rustix::process::geteuid().as_raw());
        if peer != ours {
            return Err(TalkError::Stranger(peer, ours));
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Talk { socket })
    }

    /// Says a word, with descriptors. There is room for the few words of a hand-over.
    pub fn say(&self, word: &Word, descriptors: &[BorrowedFd<'_>]) -> Result<(), TalkError> {
        let bytes = serde_json::to_vec(word).map_err(io::Error::from)?;
        if bytes.len() > HAND_OVER_PACKET_BYTES_MAX {
            return Err(io::Error::other("there is more to say than a packet takes").into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HAND_OVER_DESCRIPTORS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::other("there are more descriptors than a packet takes").into());
        }
        loop {
            match sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next word and its descriptors, if one is there.
    pub fn hear(&self) -> Result<Option<(Word, Vec<OwnedFd>)>, TalkError> {
        let mut bytes = vec![0; HAND_OVER_PACKET_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HAND_OVER_DESCRIPTORS_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let heard = loop {
            let into = &mut [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.socket, into, &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Ok(heard) => break heard,
                // One that closes without having heard all: what it said before comes behind this
                // (`unix_release_sock` in `net/unix/af_unix.c`).
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut descriptors = Vec::new();
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                descriptors.extend(passed);
            }
        }
        let bytes = &bytes[..heard.bytes];
        if bytes.is_empty() {
            return Err(TalkError::Gone);
        }
        let is_cut = heard.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let word = serde_json::from_slice(bytes).ok().filter(|_| !is_cut);
        let Some(word) = word else {
            let text: String = String::from_utf8_lossy(bytes).chars().take(80).collect();
            return Err(TalkError::Unexpected(format!("{text:?}")));
        };
        match word {
            Word::Refused { why } => Err(TalkError::Refused(why)),
            word => Ok(Some((word, descriptors))),
        }
    }

    /// The next word, which is waited for.
    pub fn await_word(&self, ms_max: u64) -> Result<(Word, Vec<OwnedFd>), TalkError> {
        let until = Instant::now() + Duration::from_millis(ms_max);
        loop {
            if let Some(heard) = self.hear()? {
                return Ok(heard);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(TalkError::Silent(ms_max));
            }
            let limit = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for this word, which comes without descriptors.
    pub fn expect_word(&self, word: &Word, ms_max: u64) -> Result<(), TalkError> {
        let (heard, _) = self.await_word(ms_max)?;
        if heard == *word { Ok(()) } else { Err(TalkError::unexpected(&heard)) }
    }

    /// Nothing is said any more. True if the other one had said `word` before.
    pub fn hang_up(&self, word: &Word) -> bool {
        // A socket that is shut down already has nothing more to come.
        let _ = shutdown(&self.socket, Shutdown::Both);
        matches!(self.hear(), Ok(Some((heard, _))) if heard == *word)
    }
}

impl TalkError {
    /// A word that does not belong here.
    pub fn unexpected(word: &Word) -> TalkError {
        let text: String = format!("{word:?}").chars().take(80).collect();
        TalkError::Unexpected(text)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (Talk, Talk) {
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a pair");
        (Talk::new(one).expect("our own"), Talk::new(other).expect("our own"))
    }

    #[test]
    fn words_keep_their_order_and_their_descriptors() {
        let (old, new) = pair();
        assert!(matches!(new.hear(), Ok(None)), "nothing was said");
        let mut file =
            File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("memory"));
        file.write_all(b"passed").expect("memory");
        old.say(&Word::State, &[file.as_fd()]).expect("room");
        old.say(&Word::Go, &[]).expect("room");
        let (word, mut passed) = new.await_word(1_000).expect("a word");
        assert_eq!((word, passed.len()), (Word::State, 1));
        let mut passed = File::from(passed.remove(0));
        let mut text = String::new();
        passed.rewind().and_then(|()| passed.read_to_string(&mut text)).expect("memory");
        assert_eq!(text, "passed");
        new.expect_word(&Word::Go, 1_000).expect("the next one");
    }

    /// Whoever is asked last knows: the word was said before the end, or its send has failed.
    #[test]
    fn a_word_is_either_found_at_the_end_or_could_not_be_said() {
        let (old, new) = pair();
        new.say(&Word::Taken, &[]).expect("room");
        assert!(old.hang_up(&Word::Taken), "it was said in time");
        assert!(matches!(new.say(&Word::Taken, &[]), Err(TalkError::Gone)));
        let (old, new) = pair();
        assert!(!old.hang_up(&Word::Taken));
        assert!(matches!(new.say(&Word::Taken, &[]), Err(TalkError::Gone)));
    }

    #[test]
    fn the_last_word_is_heard_from_one_that_did_not_listen() {
        let (old, new) = pair();
        new.say(&Word::Ready, &[]).expect("room");
        old.say(&Word::Refused { why: "another one".into() }, &[]).expect("room");
        drop(old);
        assert_eq!(new.await_word(1_000).expect_err("refused").to_string(), "another one");
        assert!(matches!(new.await_word(1_000), Err(TalkError::Gone)));
    }

    #[test]
    fn silence_the_end_and_nonsense_are_told_apart() {
        let (old, new) = pair();
        assert!(matches!(old.await_word(1), Err(TalkError::Silent(1))));
        rustix::net::send(&new, b"GET / HTTP/1.1\r\n", SendFlags::empty()).expect("room");
        assert!(matches!(old.await_word(1_000), Err(TalkError::Unexpected(_))));
        new.say(&Word::Go, &[]).expect("room");
        assert!(matches!(old.expect_word(&Word::Ready, 1_000), Err(TalkError::Unexpected(_))));
        new.say(&Word::Refused { why: "no room".into() }, &[]).expect("room");
        assert_eq!(old.await_word(1_000).expect_err("refused").to_string(), "no room");
        drop(new);
        assert!(matches!(old.await_word(1_000), Err(TalkError::Gone)));
    }
}
