//! A role of `loadtest` as a child process, spoken to in JSON lines.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

/// The child; dropping it kills it.
pub struct Role {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
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
        Role { child, stdin, stdout }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn order(&mut self, order: &Value) {
        writeln!(self.stdin, "{order}").expect("the role listens");
    }

    /// The next word of this kind; words of progress before it are passed over.
    pub fn word(&mut self, say: &str) -> Value {
        loop {
            let mut line = String::new();
            self.stdout.read_line(&mut line).expect("the role speaks");
            let word: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
            if word["say"] == say {
                return word;
            }
            assert_eq!(word["say"], "progress", "{word} in place of {say}");
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
