//! `GET /topics`, one page after the other on one connection, from the first to the last and again.

use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::http;

/// How long a page may take.
const PAGE_LIMIT: Duration = Duration::from_secs(10);
/// What stands before the name after which the next page begins.
const NEXT: &str = "\"next\":\"";

/// Lists until it is over; gives the number of pages.
pub fn list_pages(control: SocketAddr, over: &AtomicBool) -> Result<u64> {
    let socket = http::connect(control)?;
    socket.set_read_timeout(Some(PAGE_LIMIT))?;
    let mut socket = BufReader::new(socket);
    let (mut pages, mut after) = (0, String::new());
    while !over.load(Ordering::Relaxed) {
        let path = match after.is_empty() {
            true => "/topics".to_owned(),
            false => format!("/topics?after={after}"),
        };
        write!(socket.get_mut(), "GET {path} HTTP/1.1\r\nHost: {control}\r\n\r\n")?;
        let answer = http::read_next(&mut socket).with_context(|| format!("GET {path}"))?;
        if answer.status != 200 || answer.close {
            bail!("GET {path}: {} {}", answer.status, answer.first_line());
        }
        after = next_of(&answer.body);
        pages += 1;
    }
    Ok(pages)
}

/// The name after which the next page begins; empty after the last. Names of ours need no escapes.
/// It stands at the end of a page, so a page need not be understood as a whole.
fn next_of(page: &[u8]) -> String {
    let at = memchr::memmem::rfind(page, NEXT.as_bytes());
    let rest = at.map_or(&[][..], |at| &page[at + NEXT.len()..]);
    let end = memchr::memchr(b'"', rest).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_begins_after_the_name_that_a_page_ends_with() {
        assert_eq!(
            next_of(br#"{"topics":[{"topic":"a","last_id":null}],"next":"loadtest-7"}"#),
            "loadtest-7"
        );
        assert_eq!(next_of(br#"{"topics":[]}"#), "");
        assert_eq!(next_of(b"\"next\":\"cut"), "");
    }
}
