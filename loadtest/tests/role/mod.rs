//! A role of `loadtest` as a child process, spoken to in JSON lines.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// How long a role may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// The child; dropping it kills it.
pub struct Role {
    pub child: Child,
    stdin: ChildStdin,
    /// Its words, read by a thread of their own: a role that cannot speak would stop.
    words: Receiver<Value>,
    /// Words that came while another one was awaited.
    kept: Vec<Value>,
}

impl Role {
    pub fn start(role: &str) -> Role {
        let mut child = Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the role starts");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (tell, words) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let word = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
                if tell.send(word).is_err() {
                    break;
                }
            }
        });
        Role { child, stdin, words, kept: Vec::new() }
    }

    pub fn order(&mut self, order: &Value) {
        writeln!(self.stdin, "{order}").expect("the role listens");
    }

    /// The next word of this kind; others are kept for later, but a failure is one here too.
    pub fn word(&mut self, say: &str) -> Value {
        if let Some(at) = self.kept.iter().position(|word| word["say"] == say) {
            return self.kept.remove(at);
        }
        loop {
            let word = self.words.recv_timeout(PATIENCE).expect("the role speaks");
            if word["say"] == say {
                return word;
            }
            assert_ne!(word["say"], "failed", "{word} in place of {say}");
            self.kept.push(word);
        }
    }

    /// Gives an order and takes the answer of this kind.
    pub fn ask(&mut self, order: &Value, say: &str) -> Value {
        self.order(order);
        self.word(say)
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
