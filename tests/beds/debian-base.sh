#!/usr/bin/env bash
# A minimal Debian root, made once: what the base image of the Dockerfile is, where no registry is reached.
#
#   tests/beds/debian-base.sh DIRECTORY [ARCHITECTURE]
#
# DIRECTORY receives the root; nothing is done when it is there. It trusts what this machine trusts and reaches
# the mirrors that this machine reaches. ARCHITECTURE: another of Debian's (arm64), whose programs this kernel can
# run. Needs root and debootstrap.
set -euo pipefail

target=$1
architecture=${2:-$(dpkg --print-architecture)}
[ -e "$target.complete" ] && exit 0
command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 2; }
mkdir -p "$(dirname "$target")"
exec 9>"$target.lock"
flock 9
[ -e "$target.complete" ] && exit 0
rm -rf "$target"
# shellcheck source=tests/beds/shared.sh
. "$(dirname "$0")/shared.sh"
mirror=$(debian_mirror)
suite=$(debian_suite)
debootstrap --variant=minbase --arch="$architecture" "$suite" "$target" "$mirror" >"$target.log" 2>&1 || { tail "$target.log" >&2; exit 1; }
rm -rf "$target"/var/cache/apt/archives/*.deb "$target"/var/lib/apt/lists/*
cp /etc/resolv.conf "$target/etc/resolv.conf" 2>/dev/null || true
mkdir -p "$target/etc/ssl/certs"
cp -rL /etc/ssl/certs/. "$target/etc/ssl/certs/" 2>/dev/null || true
# As certificates of its own too: installing ca-certificates makes the bundle anew.
mkdir -p "$target/usr/local/share/ca-certificates"
csplit --quiet --prefix="$target/usr/local/share/ca-certificates/machine-" --suffix-format=%03d.crt --elide-empty-files \
    /etc/ssl/certs/ca-certificates.crt '/BEGIN CERTIFICATE/' '{*}'
cp -r /etc/apt/apt.conf.d/. "$target/etc/apt/apt.conf.d/"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$target/etc/pip.conf"
touch "$target.complete"
