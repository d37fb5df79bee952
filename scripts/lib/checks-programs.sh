# shellcheck shell=bash disable=SC2154,SC2034
# The checks of host-check on programs, guests and NICs. To be sourced by it, after checks-kernel.sh.

# --- programs -----------------------------------------------------------------------------

check_programs() {
    local library version='' qemu
    for library in "$root"/{usr/,usr/local/,}lib{/x86_64-linux-gnu,64,}/librte_eal.so.*.*; do
        [ ! -e "$library" ] || { version=${library##*librte_eal.so.}; break; }
    done
    if [ -z "$version" ]; then
        report missing dpdk "DPDK's libraries are not installed" "apt install libdpdk-dev"
    else
        [ -n "$root" ] || version=$(pkg-config --modversion libdpdk 2>/dev/null) || version="ABI $version"
        report ok dpdk "DPDK $version"
    fi
    check_program missing ovsdb-server openvswitch-common
    check_program missing ovsdb-tool openvswitch-common
    check_program missing ovs-vsctl openvswitch-switch
    check_program warn ovs-appctl openvswitch-common
    check_program warn ip iproute2
    check_program warn lspci pciutils
    if [ -z "$root" ]; then
        check_rust
        check_build
        qemu=$(find_qemu)
        if [ -z "$qemu" ]; then
            report warn qemu "none is built or installed" "scripts/build-qemu, for -netdev dpdk"
        elif "$qemu" -help 2>/dev/null | grep -q 'netdev dpdk'; then
            report ok qemu "$qemu: $("$qemu" -version | head -n 1), with -netdev dpdk"
        else
            report warn qemu "$qemu: $("$qemu" -version | head -n 1), without -netdev dpdk" \
                "scripts/build-qemu; or start the shim beside it (docs/guide.md)"
        fi
    fi
}

# check_program STATE NAME PACKAGE: STATE is what it is without it
check_program() {
    local dir version=''
    for dir in ${PATH//:/ } /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin; do
        [ -x "$root$dir/$2" ] || continue
        [ -n "$root" ] || version=$(dpkg-query -W -f '${Version}' "$3" 2>/dev/null) || version=
        report ok "program.$2" "$dir/$2${version:+ ($3 $version)}"
        return
    done
    report "$1" "program.$2" "not installed" "apt install $3"
}

# What builds the switch; an installed copy of this script has no tree to build
check_rust() {
    local wanted have cargo
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$top/Cargo.toml" 2>/dev/null) || true
    [ -n "$wanted" ] || return 0
    cargo=$(command -v cargo) || cargo=${CARGO_HOME:-${HOME-}/.cargo}/bin/cargo
    have=$("$cargo" --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$have" ]; then
        report warn program.cargo "not installed: the switch can't be built here" "Rust $wanted or later by rustup (https://rustup.rs); Debian 12's is too old"
    elif [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]; then
        report ok program.cargo "$cargo $have; the switch is built by $wanted or later"
    else
        report warn program.cargo "$cargo $have: too old, the switch is built by $wanted or later" "rustup update stable"
    fi
}

# What else it takes
check_build() {
    local entry missing=()
    for entry in "${build_packages[@]}"; do
        [ -e "${entry#*:}" ] || missing+=("${entry%%:*}")
    done
    if [ ${#missing[@]} = 0 ]; then
        report ok build "Debian's packages for building the switch are there"
    else
        report warn build "not all of Debian's packages for building the switch are installed" "apt install ${missing[*]}"
    fi
}

# The QEMU that guests would run by: named, built, installed
find_qemu() {
    local built
    [ -z "${QEMU-}" ] || { echo "$QEMU"; return; }
    built=$(newest "$cache"/qemu-*/complete)
    if [ -n "$built" ]; then
        echo "${built%/complete}/build/qemu-system-x86_64"
    else
        command -v qemu-system-x86_64 || true
    fi
}

newest() {
    local file best=''
    for file; do
        [ -e "$file" ] && { [ -z "$best" ] || [ "$file" -nt "$best" ]; } || continue
        best=$file
    done
    echo "$best"
}

# --- guests ---------------------------------------------------------------------------------

check_kvm() {
    local qemu image answer
    if [ ! -e "$root/dev/kvm" ]; then
        report warn kvm "there is no /dev/kvm" "modprobe kvm_intel (or kvm_amd); in a VM: nested virtualization. Guests run by emulation without it"
        return
    fi
    if [ ! -r "$root/dev/kvm" ] || [ ! -w "$root/dev/kvm" ]; then
        report warn kvm "/dev/kvm is not for $(id -un)" "adduser $(id -un) kvm"
        return
    fi
    [ -z "$root" ] || return 0
    qemu=$(find_qemu)
    image=${VM_IMAGE:-$(newest "$cache"/image-*/manifest)}
    if [ -z "$qemu" ] || [ -z "$image" ]; then
        report warn kvm "/dev/kvm is there; whether it works was not tried, for there is no QEMU or no guest image yet" \
            "scripts/build-qemu; scripts/build-image; then this again"
        return
    fi
    answer=$(VM_IMAGE=${image%/manifest} timeout --kill-after=5 30 "$top/scripts/probe-accel" "$qemu" 2>/dev/null) || answer=
    case $answer in
    kvm) report ok kvm "works: a guest has booted by it" ;;
    tcg) report warn kvm "/dev/kvm is there, but a guest that was started by it did not boot" \
        "a nested host? Run guests by emulation: -accel tcg -cpu max" ;;
    *) report warn kvm "/dev/kvm is there; whether it works could not be tried" "scripts/probe-accel in the source tree says why" ;;
    esac
}

check_kernel_devices() {
    if [ -e "$root/dev/vhost-net" ]; then
        report ok vhost-net "/dev/vhost-net is there"
    else
        report warn vhost-net "there is no /dev/vhost-net: ports in the host's kernel are slow" "modprobe vhost_net"
    fi
    if [ -e "$root/dev/net/tun" ]; then
        report ok tun "/dev/net/tun is there"
    else
        report warn tun "there is no /dev/net/tun: no ports in the host's kernel" "modprobe tun"
    fi
}

# --- NICs -------------------------------------------------------------------------------------

check_nics() {
    local address driver interfaces possible node group in_use entry text fix state found=''
    while read -r address; do
        found=1
        driver=$(nic_driver "$address")
        interfaces=$(nic_interfaces "$address")
        node=$(pci_attribute "$address" numa_node)
        group=$(iommu_group "$address")
        mapfile -t possible < <(possible_drivers "$driver")
        in_use=
        for entry in $interfaces; do
            [ -n "$in_use" ] || in_use=$(why_in_use "$entry")
        done
        nics+=("{\"address\": \"$address\", \"name\": $(json_string "$(nic_name "$address")"), \"driver\": $(json_string_or_null "$driver"), \"interfaces\": $(json_strings $interfaces), \"possible\": $(json_strings "${possible[@]}"), \"numa_node\": $(json_number_or_null "$node"), \"iommu_group\": $(json_number_or_null "$group"), \"in_use\": $(json_string_or_null "$in_use")}")

        text="$(nic_name "$address")${interfaces:+, ${interfaces//$'\n'/, }}, driver ${driver:-none}"
        text+="${possible[0]:+, possible ${possible[*]}}${group:+, IOMMU group $group}"
        state=ok fix=
        if [ -n "$in_use" ]; then
            text+="; the host uses it: $in_use"
        elif [ -z "$driver" ]; then
            state=warn fix="scripts/host-setup --bind $address, or --unbind $address for the kernel"
        elif ! is_dpdk_driver "$driver" && [ ${#possible[@]} -gt 0 ]; then
            text+="; free for DPDK: scripts/host-setup --bind $address"
        fi
        ! is_shared_driver "$driver" || text+="; DPDK works beside its kernel driver; do not bind"
        report $state "nic.$address" "$text" "$fix"
        if is_dpdk_driver "$driver" && [[ $node =~ ^[0-9]+$ ]] && ! node_has_hugepages "$node"; then
            report warn "nic.$address.numa" "it is on NUMA node $node, where there are no hugepages" \
                "scripts/host-setup --hugepages $(zeros "$node")$default_mib"
        fi
    done < <(nic_addresses)
    [ -n "$found" ] || report warn nic "no NIC is to be seen on a PCI bus" "VMs and virtual devices need none"
}

node_has_hugepages() {
    local dir
    for dir in $(hugepage_dirs "$1"); do
        [ "$(line_of "$dir/nr_hugepages")" = 0 ] || return 0
    done
    return 1
}

# "0," for each node before this one
zeros() {
    local i
    for ((i = 0; i < $1; i++)); do printf '0,'; done
}
