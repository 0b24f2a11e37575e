# Sourced by the scripts beside it: finds Go, installs packages that are missing.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="$PATH:/usr/local/go/bin" CGO_ENABLED=0

die() { echo "$*" >&2; exit 1; }
say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

command -v go >/dev/null || die "Go is missing: https://go.dev/dl/ ($(sed -n 's/^go /version /p' go.mod) or newer)"

# require_root ends the script for an ordinary user.
require_root() { [ "$(id -u)" = 0 ] || die "root is required (namespaces, mounts, cgroups): sudo $0"; }

# install PROGRAM:PACKAGE… installs the packages whose programs are not there.
install() {
    local missing=() p
    for p in "$@"; do
        [ -n "$(command -v "${p%%:*}")" ] || [ -e "${p%%:*}" ] || missing+=("${p#*:}")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    local patient=(-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
    apt-get update -qq "${patient[@]}" || die "apt-get update failed"
    apt-get install -y -qq "${patient[@]}" --no-install-recommends "${missing[@]}" >/dev/null || die "apt-get install failed"
}

need_for_runtimes=(mmdebstrap:mmdebstrap /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring)
