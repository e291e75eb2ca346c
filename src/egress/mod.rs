//! The EgressRing.
