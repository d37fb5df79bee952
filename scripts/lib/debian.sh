# shellcheck shell=bash disable=SC2034
# A release of Debian by its name, whichever this machine runs. To be sourced.

# debian_release TYPE SUITE DIRECTORY: $apt is apt-get for that release alone from then on, once it has been told to update;
# TYPE is deb or deb-src. Its lists are in DIRECTORY, so it takes no rights, and this machine's packages stay as they are.
# $mirror and $keyring are where it looks, and what it believes.
debian_release() {
    # The mirror that this machine's apt uses. Debian's own files first: others' repositories may end in "debian" as well
    mirror=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list.d/*.list \
                   /etc/apt/sources.list.d/*.sources 2>/dev/null || true; } |
        sed -n 's/^[[:space:]]*\(URIs:\|deb\( *\[[^]]*\]\)\?\)[[:space:]]\+\([^[:space:]]*\/debian\)\/\?\([[:space:]].*\)\?$/\3/p' |
        head -n 1)
    mirror=${mirror:-http://deb.debian.org/debian}
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$3/lists/partial" "$3/cache/archives/partial"
    cat >"$3/release.sources" <<EOF
Types: $1
URIs: $mirror
Suites: $2
Components: main
Signed-By: $keyring
EOF
    apt=(apt-get -o Dir::Etc::sourcelist="$3/release.sources"
         -o Dir::Etc::sourceparts=/dev/null
         -o Dir::State::lists="$3/lists"
         -o Dir::Cache="$3/cache"
         -o APT::Sandbox::User=root
         -o APT::Get::AllowUnauthenticated=false
         # Errors of a source are warnings for apt-get update
         -o APT::Update::Error-Mode=any
         -o Acquire::Retries=3 -q)
}
