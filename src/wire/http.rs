//! Request heads and answers of the data plane.
