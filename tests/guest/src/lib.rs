//! Drives guests in tests: QEMU, serial console, QMP and VNC.
