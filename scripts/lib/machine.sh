# shellcheck shell=bash disable=SC2154,SC2034
# What a machine must have: Debian packages, Rust, disk space, hugepages. To be sourced after
# common.sh and undo.sh.

# package : a file that tells that it is there
build_packages=(
    gcc:/usr/bin/gcc
    libc6-dev:/usr/include/stdio.h
    pkg-config:/usr/bin/pkg-config
    ca-certificates:/etc/ssl/certs/ca-certificates.crt
    libdpdk-dev:/usr/include/dpdk/rte_eal.h
    libclang-dev:/usr/share/doc/libclang-dev
    openvswitch-common:/usr/sbin/ovsdb-server
    openvswitch-switch:/usr/bin/ovs-vsctl
)

# What the patched QEMU needs to run: its build installs this, but a cached one
# may meet a machine that never built it.
lib=/usr/lib/x86_64-linux-gnu
vm_packages=(
    libglib2.0-0:$lib/libglib-2.0.so.0
    libpixman-1-0:$lib/libpixman-1.so.0
    libpng16-16:$lib/libpng16.so.16
    libslirp0:$lib/libslirp.so.0
    seabios:/usr/share/seabios/bios-256k.bin
    qemu-system-data:/usr/share/qemu/keymaps/en-us
    ipxe-qemu:/usr/lib/ipxe/qemu/pxe-virtio.rom
)

# need_packages PACKAGE:FILE...: installs those that are missing
need_packages() {
    local entry missing=()
    for entry; do
        [ -e "${entry#*:}" ] || missing+=("${entry%%:*}")
    done
    if [ ${#missing[@]} = 0 ]; then
        say "Packages: all there"
        return
    fi
    say "Packages: installing ${missing[*]}"
    command -v apt-get >/dev/null || die "no apt-get here; install by hand what these Debian packages hold: ${missing[*]}"
    local apt=(apt-get -y -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 --no-install-recommends)
    run "${apt[@]}" --download-only install "${missing[@]}" || {
        run "${apt[@]}" update || die "apt-get update failed"
        run "${apt[@]}" --download-only install "${missing[@]}" || die "packages can't be had: ${missing[*]}"
    }
    # Debian's package starts the stock ovs-vswitchd, which nobody asked for here.
    local policy=/usr/sbin/policy-rc.d made='' status=0
    if [ ! -e $policy ]; then
        made=1
        undo_note file $policy
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    # dpkg is not to be interrupted half-way
    job_patience=600
    run "${apt[@]}" install "${missing[@]}" || status=$?
    job_patience=10
    [ -z "$made" ] || undo_last_file $policy
    [ $status = 0 ] || die "installing ${missing[*]} failed"
}

# need_rust [COMPONENT...]
need_rust() {
    local wanted have component
    if ! command -v cargo >/dev/null && [ -e "${CARGO_HOME:-$HOME/.cargo}/env" ]; then
        # shellcheck disable=SC1091
        . "${CARGO_HOME:-$HOME/.cargo}/env"
    fi
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$top/Cargo.toml")
    command -v cargo >/dev/null ||
        die "cargo is missing. Debian's Rust is too old; install $wanted or later with rustup (https://rustup.rs), then run this again"
    have=$(rustc --version 2>>"$log" | cut -d' ' -f2) || true
    [ -n "$have" ] || die "rustc does not run; with rustup: rustup default stable"
    [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        die "Rust $have is too old, $wanted or later is needed; with rustup: rustup update stable"
    for component; do
        cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 && continue
        command -v rustup >/dev/null || die "cargo has no $component"
        run rustup component add "$component" || die "rustup can't install $component"
    done
    say "Rust: $have"
}

# need_disk MIB: so much for the build directory, a quarter of it if that is there already. A linker that meets
# a full disk is killed by SIGBUS, which tells nobody why.
need_disk() {
    local dir=${CARGO_TARGET_DIR:-$top/target} want=$1 free
    [ ! -d "$dir" ] || want=$((want / 4))
    while [ ! -d "$dir" ]; do
        dir=$(dirname "$dir")
    done
    free=$(($(df -m --output=avail "$dir" | tail -n 1)))
    [ "$free" -ge "$want" ] ||
        die "the disk of $dir has only $free MiB free, $want are needed for building; make room, or set CARGO_TARGET_DIR to a directory on another disk"
}

# need_hugepages MIB: so many free, and a hugetlbfs to use them by
need_hugepages() {
    local dir want=$((($1 + 1) / 2)) free nr added=0 missing made=''
    # --socket-mem counts on node 0
    for dir in /sys/devices/system/node/node0/hugepages/hugepages-2048kB /sys/kernel/mm/hugepages/hugepages-2048kB; do
        [ ! -d $dir ] || break
    done
    [ -d $dir ] || die "this kernel has no hugepages of 2 MiB"
    free=$(cat $dir/free_hugepages)
    missing=$((want - free))
    if [ $missing -gt 0 ]; then
        nr=$(cat $dir/nr_hugepages)
        hold_signals
        { echo $((nr + missing)) >$dir/nr_hugepages; } 2>>"$log" ||
            die "can't reserve hugepages: $dir/nr_hugepages can't be written (a container without that right? then reserve $want on the host)"
        added=$(($(cat $dir/nr_hugepages) - nr))
        if [ $added -lt $missing ]; then
            echo 3 >/proc/sys/vm/drop_caches
            echo 1 >/proc/sys/vm/compact_memory
            echo $((nr + missing)) >$dir/nr_hugepages
            added=$(($(cat $dir/nr_hugepages) - nr))
        fi
        [ $added -le 0 ] || undo_note pages $dir/nr_hugepages $added
        release_signals
        [ $added -ge $missing ] ||
            die "only $((free + added)) hugepages of 2 MiB could be had, $want are needed: memory is too full or fragmented (try after a reboot)"
    fi
    if ! awk '$3 == "hugetlbfs" && ($4 ~ /pagesize=2M/ || $4 !~ /pagesize=/) { found = 1 } END { exit !found }' /proc/mounts; then
        if [ ! -d /dev/hugepages ]; then
            undo_note mkdir /dev/hugepages
            mkdir /dev/hugepages
        fi
        hold_signals
        mount -t hugetlbfs -o pagesize=2M nodev /dev/hugepages 2>>"$log" ||
            die "can't mount hugetlbfs on /dev/hugepages (a container without that right? then mount it into it)"
        undo_note mount /dev/hugepages
        release_signals
        made=', hugetlbfs mounted on /dev/hugepages'
    fi
    say "Hugepages: $free were free, $added reserved$made"
}
