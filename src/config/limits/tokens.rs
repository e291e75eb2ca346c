//! Limits of tokens and the keys that sign them.

/// Bytes of a token: some hundred patterns, and less than a request head has room for.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Patterns of one claim.
pub const CLAIM_PATTERNS_MAX: usize = 256;
/// Signatures that are checked for one token that names no key.
pub const KEYS_TRIED_MAX: usize = 4;
/// Keys of one source.
pub const KEYS_MAX: usize = 64;
/// Bytes of a set of keys: sixty-four of the largest take a tenth of this.
pub const JWKS_BYTES_MAX: usize = 1 << 20;
/// Milliseconds from the end of one fetch of keys to the next.
pub const JWKS_REFRESH_MS: u64 = 60_000;
/// Milliseconds for one fetch of keys.
pub const JWKS_FETCH_MS_MAX: u64 = 10_000;
/// Milliseconds that a new process tries to fetch its keys before it gives up to take the place of
/// another one.
pub const JWKS_UPGRADE_MS_MAX: u64 = 5_000;
/// Milliseconds after a failed fetch of keys to the next, doubled up to [`JWKS_REFRESH_MS`].
pub const JWKS_RETRY_MS: u64 = 1_000;
/// Tokens whose signatures a shard checks in one turn, at some tens of microseconds each. Others
/// wait for the next turns, in their order.
pub const VERIFICATIONS_PER_TURN_MAX: usize = 8;
/// Clients of a shard that may wait for that; each keeps its request head meanwhile. Further ones
/// are told to come again.
pub const VERIFICATIONS_WAITING_MAX: usize = 32_768;
/// Tokens of publishers whose signatures the control plane checks in a second, at a tenth of a
/// millisecond each on the hub's thread: so publishing keeps most of it, however many ask. Further
/// ones are told to come again; a token that was checked before is taken at any time.
pub const CONTROL_TOKENS_PER_SECOND_MAX: usize = 500;
/// Tokens that a shard remembers with what they grant, so that a client that comes back costs no
/// signature; and as many that were found wrong. At most [`CLAIMS_BYTES_MAX`] each.
pub const TOKENS_KNOWN_MAX: usize = 4_096;
/// Bytes of what one remembered token grants, at most: its patterns as they stand in it, with what
/// each takes beside its text.
pub const CLAIMS_BYTES_MAX: usize = TOKEN_BYTES_MAX + 2 * CLAIM_PATTERNS_MAX * 40;
/// Bytes of what a shard remembers of a token beside what it grants: its digest, twice, and why it
/// was refused.
pub const KNOWN_TOKEN_BYTES: usize = 512;
