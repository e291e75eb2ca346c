//! What stands between a member's socket and its splitter: TLS, and the streams of HTTP/2.
//!
//! Members whose streams are on one connection are behind each other, and the first of them holds
//! it.

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::Crowd;
use crate::fault::server_fault;
use crate::framing::http2::Carrier;
use crate::receiver::handshake::Streams;
use crate::secure::Secure;

impl Crowd {
    /// A member's socket brought these bytes.
    #[inline]
    pub(super) fn take(&mut self, number: u32, bytes: &mut [u8]) -> Result<()> {
        let member = &mut self.members[number as usize];
        if member.carrier.is_some() {
            return self.take_frames(number, bytes);
        }
        let Some(mut secure) = member.secure.take() else {
            self.arrived(number, bytes)?;
            return self.answer(number);
        };
        let taken = self.take_sealed(number, &mut secure, bytes);
        self.members[number as usize].secure = Some(secure);
        taken.and_then(|()| self.answer(number))
    }

    fn take_sealed(&mut self, number: u32, secure: &mut Secure, bytes: &mut [u8]) -> Result<()> {
        if self.members[number as usize].split.is_none() {
            let held = secure.skim(bytes)?;
            self.counted(number, held);
            return Ok(());
        }
        let mut out = Vec::new();
        secure.read(bytes, &mut out, &mut |data| self.arrived(number, data))?;
        if out.is_empty() { Ok(()) } else { self.send(number, &out) }
    }

    /// The streams of a connection that member `number` holds are open from here on.
    pub(super) fn carry(&mut self, number: u32, streams: Streams) -> Result<()> {
        let Streams { carrier, early } = streams;
        self.members[number as usize].carrier = Some(Box::new(carrier));
        early.into_iter().try_for_each(|(stream, data)| self.arrived(number + stream as u32, &data))
    }

    /// The connection that a member holds brought these bytes.
    pub(super) fn take_frames(&mut self, number: u32, bytes: &mut [u8]) -> Result<()> {
        let member = &mut self.members[number as usize];
        let Some(mut carrier) = member.carrier.take() else { return Ok(()) };
        let mut out = Vec::new();
        let taken = match member.secure.take() {
            None => self.take_streams(number, &mut carrier, bytes),
            Some(mut secure) => {
                let mut each = |data: &[u8]| self.take_streams(number, &mut carrier, data);
                let taken = secure.read(bytes, &mut out, &mut each);
                self.members[number as usize].secure = Some(secure);
                taken
            }
        };
        self.answers.extend(carrier.answers());
        self.members[number as usize].carrier = Some(carrier);
        taken?;
        if !out.is_empty() {
            self.send(number, &out)?;
        }
        self.answer(number)
    }

    /// Gives each member what is its own of these frames.
    fn take_streams(&mut self, number: u32, carrier: &mut Carrier, bytes: &[u8]) -> Result<()> {
        let mut at = 0;
        let broke = |cause| server_fault(format!("connection {number}: {cause}"));
        while let Some((stream, run)) = carrier.next(bytes, &mut at).map_err(broke)? {
            self.arrived(number + stream as u32, &bytes[run])?;
        }
        Ok(())
    }

    /// Sends what answers a member's pings.
    #[inline]
    pub(super) fn answer(&mut self, number: u32) -> Result<()> {
        if self.answers.is_empty() {
            return Ok(());
        }
        let answers = std::mem::take(&mut self.answers);
        let sealed = match &mut self.members[number as usize].secure {
            Some(secure) => secure.seal(&answers)?,
            None => answers,
        };
        self.send(number, &sealed)
    }

    fn send(&self, number: u32, bytes: &[u8]) -> Result<()> {
        let member = &self.members[number as usize];
        let socket = member.socket.as_ref().context("a connection that is open has a socket")?;
        // A full send buffer means a server that does not read; it will say so itself.
        match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) | Err(Errno::AGAIN | Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(error) => Err(error).context("answering the server"),
        }
    }
}
