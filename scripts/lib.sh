# shellcheck shell=bash
# Shared by the scripts beside it, which source it first. It changes nothing
# by itself: it holds names for places, and helpers that speak on standard
# error only, so that standard output stays free for results.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${SPACELIFT_DEV_CACHE:-${HOME:?set HOME or SPACELIFT_DEV_CACHE}/.cache/spacelift-launcher}
BIN=$CACHE/bin
case :$PATH: in
  *:/usr/sbin:*) ;;
  *) PATH=$PATH:/usr/sbin:/sbin ;; # dockerd, iptables, debootstrap
esac
export PATH
# shellcheck disable=SC2034 # read by the scripts that source this
readonly ROOT CACHE BIN

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$@"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

is_root() { [ "$(id -u)" -eq 0 ]; }

is_debian() { have apt-get && have dpkg-query; }

# quietly COMMAND... - its output is shown only when it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 </dev/null || status=$?
  if [ "$status" -ne 0 ]; then
    tail -n 25 "$log" >&2
    say "failed with status $status: $*"
  fi
  rm -f "$log"
  return "$status"
}

# digest - one hash over standard input.
digest() { sha256sum | cut -d' ' -f1; }

# missing_packages PACKAGE... - those that dpkg does not have installed.
missing_packages() {
  local package
  for package; do
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] ||
      printf '%s\n' "$package"
  done
}

# apt_install PACKAGE... - installs what is missing of these and starts none
# of the services that come with it.
apt_install() {
  local missing guard=
  local -a install
  is_debian || die "these are needed, please install them: $*"
  missing=$(missing_packages "$@" | paste -sd' ')
  [ -n "$missing" ] || return 0
  is_root || die "these packages are needed, please install them as root: $missing"
  say "installing $missing"
  # Maintainer scripts ask this program before they start a service.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    guard=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' >"$guard"
    chmod 755 "$guard"
  fi
  read -ra install <<<"$missing"
  install=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300
    install --no-install-recommends "${install[@]}")
  local status=0
  # The package lists of a fresh machine are empty, or too old to be true.
  "${install[@]}" >/dev/null 2>&1 </dev/null ||
    { quietly apt-get update && quietly "${install[@]}"; } || status=$?
  [ -z "$guard" ] || rm -f "$guard"
  return "$status"
}

# keep_from_boot UNIT... - services that came with a package stay off.
keep_from_boot() {
  local unit
  for unit; do
    ! have systemctl || systemctl --root=/ disable "$unit" || true
    update-rc.d "${unit%.*}" disable || true
  done >/dev/null 2>&1
}
