//! The bare multishot-receive loop: what this kernel charges for receiving, without looking at a
//! single byte.
//!
//! Its sockets are opened as a receiver's are. From then on it takes what the ring received, adds
//! up lengths, and tells the coordinator when so many bytes have come that every connection must
//! have its events. Nothing else: the coordinator reads while it waits for each burst, so its words
//! find room.

use anyhow::Result;
use fanwave::egress::{Completion, EgressRing, ReceiveEnd};

use super::crowd::Crowd;
use super::wires::Wires;
use super::{Order, Totals, Word, say};
use crate::link::Lines;
use crate::usage::own_cpu_ns;

/// Obeys [`Order::Zero`] and [`Order::Report`] until the orders end; the frame length that zeroing
/// names is what one event is.
pub fn serve(wires: &mut Wires, lines: &mut Lines, crowd: &Crowd) -> Result<()> {
    let connections = crowd.report(0).connections;
    let orders = wires.order_slot();
    let (mut bytes, mut event_bytes, mut told) = (0, u64::MAX, 0);
    let mut over = false;
    loop {
        wires.wait(None)?;
        let mut failed = None;
        let mut again = Vec::new();
        wires.ring.reap(&mut |completion| match completion {
            Completion::Received { slot, bytes: here } => {
                if slot != orders {
                    bytes += here.len() as u64;
                } else if let Err(error) = lines.push(here) {
                    failed = Some(error);
                }
            }
            Completion::ReceiveEnded { slot, end: ReceiveEnd::NoBuffers } => again.push(slot),
            Completion::ReceiveEnded { slot, .. } if slot == orders => over = true,
            Completion::ReceiveEnded { slot, end } => {
                failed = Some(anyhow::anyhow!("the bare loop lost connection {slot}: {end:?}"));
            }
            // Nothing else was asked of the ring.
            _ => {}
        });
        if let Some(error) = failed {
            return Err(error);
        }
        for slot in again {
            wires.receive_slot(slot)?;
        }
        while let Some(order) = lines.next()? {
            match order {
                Order::Zero { raw_frame_bytes, .. } => {
                    event_bytes = (raw_frame_bytes * connections).max(1) as u64;
                    (bytes, told) = (0, 0);
                    say(&Word::Zeroed)?;
                }
                Order::Report { .. } => {
                    say(&Word::Report(Totals {
                        connections,
                        bytes,
                        cpu_ns: own_cpu_ns(),
                        ..Totals::default()
                    }))?;
                }
                order => anyhow::bail!("the bare loop does not know {order:?}"),
            }
        }
        if bytes / event_bytes > told {
            told = bytes / event_bytes;
            say(&Word::Progress { events: told })?;
        }
        if over {
            return Ok(());
        }
    }
}
