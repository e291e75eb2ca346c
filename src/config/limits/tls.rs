//! Limits of TLS: handshakes, records, certificates of an authority, the control plane.

use super::SWEEP_VISITS_MAX;

/// Steps of TLS handshakes in a turn. One that signs takes about 70 us, so that a storm of them
/// holds up those who are there by half a millisecond at most.
pub const HANDSHAKE_STEPS_PER_TURN: usize = 8;
/// Bytes of a TLS handshake that a client may send ahead: a record of the largest size, and the
/// request behind it.
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 18 << 10;
/// What a handshake under way takes beside them: rustls's own state, measured.
pub const TLS_HANDSHAKE_STATE_BYTES: usize = 4 << 10;
/// Milliseconds for the rest of a record whose begin has come: a large one takes that long at four
/// kilobits per second. Its memory is held meanwhile.
pub const TLS_RECORD_MS_MAX: u64 = 30_000;
/// Bytes of a connection with TLS beside its entry: keys, counters and secrets, and where they are.
pub const TLS_SESSION_BYTES: usize = 200;
/// Sealed pieces whose memory is kept for the next ones: as many as one step sends.
pub const PIECES_POOLED: usize = 2 * SWEEP_VISITS_MAX;
/// Bytes that are sealed before the kernel takes them: so many that it reads them from the cache,
/// and that a submit is paid for by many. Their memory is kept.
pub const SEALED_BYTES_PER_SUBMIT: usize = 512 << 10;
/// Milliseconds for the TLS handshake of a control connection.
pub const CONTROL_TLS_MS_MAX: u64 = 10_000;
/// Handshakes that a control listener has under way; one more ends the oldest. At the rate below
/// each has half a second, which is more than a round trip.
pub const CONTROL_TLS_HANDSHAKES_MAX: usize = 256;
/// Connections that a control listener with TLS accepts in a second. A handshake takes the hub's
/// thread a tenth of a millisecond with a key on P-256, half of one with RSA: so publishing keeps
/// three quarters of it.
pub const CONTROL_TLS_PER_SECOND_MAX: usize = 500;
/// Milliseconds between two looks whether a control listener with TLS may accept again.
pub const CONTROL_TLS_WAIT_MS: u64 = 10;
/// What TLS takes of a control connection at most: what rustls holds of either direction.
pub const CONTROL_TLS_BYTES_MAX: usize = 128 << 10;
/// Milliseconds after a failed order of a certificate until the next one; then three times as long,
/// and so on. Four fall into the first hour: Let's Encrypt takes five failures of a name in one.
pub const ACME_RETRY_MS: u64 = 60_000;
/// The longest of these waits.
pub const ACME_RETRY_MS_MAX: u64 = 6 * 3_600_000;
/// Milliseconds between two looks at the clock while no certificate is due.
pub const ACME_LOOK_MS: u64 = 3_600_000;
/// Milliseconds for a whole order, with what the authority looks at.
pub const ACME_ORDER_MS_MAX: u64 = 300_000;
/// Milliseconds for one answer of the authority.
pub const ACME_ANSWER_MS_MAX: u64 = 30_000;
/// Bytes of such an answer.
pub const ACME_ANSWER_BYTES_MAX: usize = 1 << 20;
