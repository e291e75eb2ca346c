//! Everything that knows glommio.
