# shellcheck shell=bash disable=SC2154,SC2034
# The checks of host-check on CPU, kernel and memory. To be sourced by it.

# What the switch starts with at the least (primary/src/memory.rs), and what it takes
least_mib=64 default_mib=512

# --- CPU ---------------------------------------------------------------------------

check_cpu() {
    local key value flags='' model='' cpus=0 flag lacking=() memory='' isolated
    while IFS=: read -r key value; do
        case ${key%%[[:space:]]*} in
        processor) cpus=$((cpus + 1)) ;;
        flags) flags=" ${value# } " ;;
        model) [[ $key != 'model name'* ]] || model=${value# } ;;
        esac
    done < <(file_of /proc/cpuinfo)
    while read -r key value _; do
        [ "$key" != MemTotal: ] || memory=$((value / 1024))
    done < <(file_of /proc/meminfo)
    facts=("$(json_string "$(kernel_release)")" "$(json_string "${model:-unknown}")" "$cpus" "${memory:-0}")

    if [ -z "$flags" ]; then
        report missing cpu "no x86 CPU is to be seen in /proc/cpuinfo" "the switch runs on x86_64 only"
        return
    fi
    # What DPDK is built for (machine=default) and EAL refuses to start without
    for flag in lm sse sse2 pni ssse3 sse4_1 sse4_2 cx16; do
        [[ $flags == *" $flag "* ]] || lacking+=("$flag")
    done
    if [ ${#lacking[@]} = 0 ]; then
        report ok cpu "$cpus x ${model:-unknown model}: SSE4.2 and all that DPDK is built for"
    else
        report missing cpu "${model:-the CPU} lacks ${lacking[*]}" \
            "a CPU since 2009; in a VM: give it the host's (-cpu host)"
    fi
    if [[ $flags == *' pdpe1gb '* ]]; then
        report ok cpu.pages-1g "hugepages of 1 GiB are possible"
    else
        report warn cpu.pages-1g "no hugepages of 1 GiB (pdpe1gb)" "those of 2 MiB do; in a VM: -cpu host"
    fi
    if [[ $flags == *' vmx '* ]]; then
        report ok cpu.virtualization "VT-x"
    elif [[ $flags == *' svm '* ]]; then
        report ok cpu.virtualization "AMD-V"
    elif [[ $flags == *' hypervisor '* ]]; then
        report warn cpu.virtualization "neither VT-x nor AMD-V: this is a virtual machine" \
            "guests in it need nested virtualization on its host, or run by emulation"
    else
        report warn cpu.virtualization "neither VT-x nor AMD-V" "switch it on in the firmware; guests run by emulation without it"
    fi
    isolated=$(line_of /sys/devices/system/cpu/isolated)
    if [ -n "$isolated" ]; then
        report ok cpu.isolated "CPUs kept free of other work: $isolated"
    else
        report warn cpu.isolated "no CPU is kept free of other work" \
            "for steady latency: isolcpus=LIST nohz_full=LIST on the kernel command line, and the same CPUs in other_config:pmd-cpu-mask"
    fi
    # Threads of the switch and of shims that share a CPU take turns within a session only (decision 036)
    if [ "$(line_of /proc/sys/kernel/sched_autogroup_enabled)" = 1 ]; then
        report warn cpu.sessions "the kernel shares CPUs among sessions first" \
            "where the switch and its shims share a CPU: sysctl kernel.sched_autogroup_enabled=0"
    else
        report ok cpu.sessions "the kernel does not share CPUs among sessions first"
    fi
}

# --- kernel --------------------------------------------------------------------------

check_kernel() {
    local release major minor option need words value
    local -A set=()
    release=$(kernel_release)
    IFS=.- read -r major minor _ <<<"$release"
    if ! [[ ${major-}.${minor-} =~ ^[0-9]+\.[0-9]+$ ]]; then
        report missing kernel "no Linux kernel to be seen in /proc" "mount -t proc proc /proc"
    elif [ $((major * 1000 + minor)) -lt 5003 ]; then
        report missing kernel "Linux $release" "5.3 or later is needed, to tell that a client has died (pidfd)"
    elif [ $((major * 1000 + minor)) -lt 5013 ]; then
        report warn kernel "Linux $release" "from 5.13 on, shims are confined by landlock as well"
    else
        report ok kernel "Linux $release"
    fi
    if ! kernel_config >/dev/null; then
        report warn kernel.options "neither /proc/config.gz nor /boot/config-$release: the kernel's options can't be told"
        return
    fi
    while IFS='=' read -r option value; do
        [[ $option != CONFIG_* ]] || set[${option#CONFIG_}]=$value
    done < <(kernel_config)
    while read -r option need words; do
        case ${set[$option]-} in
        y) report ok "kernel.$option" "built in: $words" ;;
        m) report ok "kernel.$option" "module: $words" ;;
        *) report "$need" "kernel.$option" "not set: $words" "a kernel with CONFIG_$option; Debian's linux-image-amd64 has it" ;;
        esac
    done <<'END'
HUGETLBFS missing hugepages
EVENTFD missing doorbells between the switch and its clients
UNIX missing sockets between the switch and its clients
PROC_PAGE_MONITOR warn physical addresses, for NICs without an IOMMU
IOMMU_SUPPORT warn IOMMU
VFIO_PCI warn NICs by way of an IOMMU
UIO_PCI_GENERIC warn NICs without an IOMMU
KVM warn fast guests
TUN warn ports in the host's kernel
VHOST_NET warn fast ports in the host's kernel
SECCOMP_FILTER warn confined shims
SECURITY_LANDLOCK warn confined shims
END
    for option in vfio-pci uio_pci_generic; do
        value=$(module_state "$option")
        case $value in
        loaded | 'built in') report ok "driver.$option" "$value" ;;
        available) report ok "driver.$option" "a module that is not loaded; host-setup --bind loads it" ;;
        *) report warn "driver.$option" "this kernel has none" "Debian's linux-image-amd64 has it, the cloud kernel does not" ;;
        esac
    done
}

# The kernel's options; status 1 if they can't be had
kernel_config() {
    local file
    for file in "$root/boot/config-$(kernel_release)" "$root/lib/modules/$(kernel_release)/config"; do
        [ ! -r "$file" ] || { cat "$file"; return; }
    done
    [ -r "$root/proc/config.gz" ] && gzip -dc <"$root/proc/config.gz" 2>/dev/null
}

check_iommu() {
    local word words='' groups=("$root"/sys/kernel/iommu_groups/[0-9]*)
    for word in $(file_of /proc/cmdline); do
        case $word in *iommu*=*) words+=" $word" ;; esac
    done
    if iommu_in_use; then
        report ok iommu "on, ${#groups[@]} groups;${words:- nothing of it} on the kernel command line"
    elif compgen -G "$root/sys/class/iommu/*" >/dev/null; then
        report warn iommu "there is one, and the kernel does not use it" \
            "intel_iommu=on iommu=pt on the kernel command line (/etc/default/grub, then update-grub)"
    else
        report warn iommu "none: vfio-pci can't give a NIC to DPDK" \
            "VT-d or AMD-Vi in the firmware; on Intel also intel_iommu=on iommu=pt on the kernel command line; or: host-setup --driver uio_pci_generic"
    fi
}

# --- hugepages -------------------------------------------------------------------------

check_hugepages() {
    local dir node kb total free mount mib=0 free_mib=0 mounted_mib=0 wanted=$default_mib sizes='' unmounted='' used='' state fix
    for node in $(numa_nodes); do
        for dir in $(hugepage_dirs "$node"); do
            kb=${dir##*-}
            kb=${kb%kB}
            total=$(line_of "$dir/nr_hugepages")
            free=$(line_of "$dir/free_hugepages")
            total=${total:-0} free=${free:-0}
            mount=$(hugetlbfs_mount "$kb")
            hugepages+=("{\"node\": $node, \"page_kb\": $kb, \"total\": $total, \"free\": $free, \"mount\": $(json_string_or_null "$mount")}")
            report ok "hugepages.$node.$kb" "node $node: $total of $kb kB, $free free"
            sizes+=" $kb"
            [ "$node.$kb" != 0.2048 ] || wanted=$((total * 2 - free * 2 + default_mib))
            [ "$total" != 0 ] || continue
            mib=$((mib + total * kb / 1024))
            free_mib=$((free_mib + free * kb / 1024))
            if [ -n "$mount" ]; then
                mounted_mib=$((mounted_mib + free * kb / 1024))
                ! compgen -G "$root$mount/*map_*" >/dev/null || used=' (DPDK processes use the others)'
            else
                unmounted=$kb
            fi
        done
    done
    fix="scripts/host-setup --hugepages $wanted"
    if [ -z "$sizes" ]; then
        report missing hugepages "this kernel shows none" "a kernel with CONFIG_HUGETLBFS, and sysfs mounted"
    elif [ "$free_mib" -ge $default_mib ]; then
        report ok hugepages "$mib MiB are reserved, $free_mib MiB are free$used"
    elif [ "$free_mib" -ge $least_mib ] || [ -n "$used" ]; then
        report warn hugepages "$mib MiB are reserved, $free_mib MiB are free$used; a switch takes $default_mib MiB if it can" "$fix"
    else
        report missing hugepages "$mib MiB are reserved, $free_mib MiB are free; the switch needs $least_mib MiB, and takes $default_mib MiB if it can" "$fix"
    fi
    if [ -n "$unmounted" ]; then
        state=warn
        [ "$mounted_mib" -ge $least_mib ] || state=missing
        report $state hugepages.mount "no hugetlbfs is mounted for pages of $unmounted kB" \
            "scripts/host-setup --hugepages 0$([ "$unmounted" = 2048 ] || echo " --page-size 1G")"
    fi
    for mount in $(hugetlbfs_mounts); do
        report ok hugepages.mount "$mount: $(stat -c 'owner %U, group %G, mode %a' "$root$mount" 2>/dev/null || echo 'not to be seen')"
    done
}

# hugepage_dirs NODE: one for each size, small ones first
hugepage_dirs() {
    local dir kb
    for dir in "/sys/devices/system/node/node$1/hugepages" /sys/kernel/mm/hugepages; do
        [ -d "$root$dir" ] || continue
        for kb in $(cd "$root$dir" && printf '%s\n' hugepages-*kB | tr -cd '0-9\n' | sort -n); do
            echo "$dir/hugepages-${kb}kB"
        done
        return
    done
}

hugetlbfs_mounts() {
    local kb
    for kb in 2048 1048576; do hugetlbfs_mount $kb; done
}

# --- limits ------------------------------------------------------------------------------

check_limits() {
    local memlock path limit file
    memlock=$(ulimit -l)
    if [ "$memlock" = unlimited ] || [ "$memlock" -ge $((default_mib * 1024)) ]; then
        report ok limits.memlock "memory that a process may lock: $memlock${memlock/#[0-9]*/ kB}"
    else
        report warn limits.memlock "a process may lock $memlock kB: too little for NICs by vfio-pci without root's rights" \
            "LimitMEMLOCK=infinity in the unit, or memlock in /etc/security/limits.conf"
    fi
    IFS=: read -r _ _ path < <(file_of /proc/self/cgroup | grep '^0::') || return 0
    for file in "/sys/fs/cgroup${path%/}"/hugetlb.{2MB,1GB}.max; do
        limit=$(line_of "$file")
        [[ $limit =~ ^[0-9]+$ ]] && [ "$limit" -lt $((default_mib << 20)) ] || continue
        report warn limits.hugetlb "this shell's control group may use $((limit >> 20)) MiB of hugepages" "raise $file"
    done
}
