# shellcheck shell=bash disable=SC2154,SC2034
# What host-check has found, as text at once or as JSON at the end. To be sourced.

checks=() hugepages=() nics=() facts=()
needed=0 show=''

# report STATE ID TEXT [FIX]: STATE is ok, missing or warn
report() {
    local fix=null
    [ "$1" != missing ] || needed=$((needed + 1))
    [ -z "${4-}" ] || fix=$(json_string "$4")
    checks+=("{\"id\": $(json_string "$2"), \"state\": \"$1\", \"text\": $(json_string "$3"), \"fix\": $fix}")
    [ -n "$show" ] || return 0
    printf '%-8s %-25s %s\n' "$1" "$2" "$3"
    [ -z "${4-}" ] || printf '%-8s %-25s -> %s\n' '' '' "$4"
}

# Bytes that are no text (a device's name may hold anything) are left out
json_string() {
    local text=${1//[^[:print:]]/}
    text=${text//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

json_string_or_null() { if [ -n "$1" ]; then json_string "$1"; else printf null; fi; }
json_number_or_null() { if [[ $1 =~ ^[0-9]+$ ]]; then printf %d "$((10#$1))"; else printf null; fi; }

# json_list ITEM...: items are JSON
json_list() {
    local item comma=''
    printf '['
    for item; do
        printf '%s\n    %s' "$comma" "$item"
        comma=,
    done
    printf ']'
}

json_strings() {
    local word items=()
    for word; do items+=("$(json_string "$word")"); done
    local IFS=,
    printf '[%s]' "${items[*]}"
}

json_report() {
    local ready=true
    [ "$needed" = 0 ] || ready=false
    printf '{\n  "format": 1,\n  "ready": %s,\n' "$ready"
    printf '  "host": {"kernel": %s, "cpu": %s, "cpus": %s, "memory_mib": %s},\n' "${facts[@]}"
    printf '  "checks": %s,\n' "$(json_list "${checks[@]}")"
    printf '  "hugepages": %s,\n' "$(json_list "${hugepages[@]}")"
    printf '  "nics": %s\n}\n' "$(json_list "${nics[@]}")"
}
