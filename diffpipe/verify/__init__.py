"""Verify: proofs on this machine that a resumed run is the uninterrupted one."""
