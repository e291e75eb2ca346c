//! What `GET /` of the data plane says to a first visitor: how to subscribe.

use std::fmt::Write as _;

/// The page or the text, with addresses at `host`: the checked value of the `Host` field, if there
/// is one.
pub(super) fn front(is_html: bool, host: Option<&str>) -> String {
    let host = host.filter(|host| !host.is_empty()).unwrap_or("127.0.0.1:8080");
    if !is_html {
        return format!(
            "fanwave {version}: subscribe here

curl -N 'http://{host}/sse/hello'     an event stream of the topic hello
fanwave tail 'ws://{host}/ws/hello'   the same over WebSocket

Several topics: /sse?topic=a&topic=b. Publishers use the control plane: the server prints its address.
",
            version = env!("CARGO_PKG_VERSION"),
            host = host.replace('\'', "'\\''"),
        );
    }
    let host = escaped(host);
    format!(
        r#"<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fanwave</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }}
pre {{ background: #8881; border-radius: 8px; padding: 1rem; overflow-x: auto }}
</style>
<h1>fanwave</h1>
<p>This is the data plane: subscribers connect here. In a page:</p>
<pre>const events = new EventSource("http://{host}/sse/hello");
events.onmessage = event =&gt; console.log(event.data);</pre>
<p>The same over WebSocket:</p>
<pre>const socket = new WebSocket("ws://{host}/ws/hello");
socket.onmessage = event =&gt; console.log(event.data);</pre>
<p>In a terminal:</p>
<pre>curl -N http://{host}/sse/hello</pre>
<p>Publish to the topic <code>hello</code> on the control plane, whose address the server prints at its start.
fanwave {version}.</p>
</html>
"#,
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// `text` as it may stand in HTML, quoted or not.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '<' | '>' | '"' | '\'' => {
                write!(safe, "&#{};", c as u32).expect("a string takes every write");
            }
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_where_it_was_asked() {
        let page = front(true, Some("edge.example:8080"));
        assert!(page.contains("new EventSource(\"http://edge.example:8080/sse/hello\")"), "{page}");
        assert!(page.contains("new WebSocket(\"ws://edge.example:8080/ws/hello\")"), "{page}");
        let text = front(false, Some("edge.example:8080"));
        assert!(text.contains("curl -N 'http://edge.example:8080/sse/hello'"), "{text}");
        for nobody in [None, Some("")] {
            assert!(front(true, nobody).contains("http://127.0.0.1:8080/sse/hello"));
        }
    }

    #[test]
    fn a_host_cannot_write_into_the_page() {
        let page = front(true, Some("a'&b;<script>\"x"));
        assert!(page.contains("http://a&#39;&#38;b;&#60;script&#62;&#34;x/sse/hello"), "{page}");
        assert!(front(false, Some("it's")).contains(r"'http://it'\''s/sse/hello'"));
    }
}
