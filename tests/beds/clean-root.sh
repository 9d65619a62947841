#!/usr/bin/env bash
# Follow the README on a machine that has nothing: a fresh Debian root with python3, git and CA certificates.
#
#   tests/beds/clean-root.sh DIRECTORY COMMAND…
#
# Makes the root under DIRECTORY (kept as DIRECTORY/base, so that the next run is quick), clones this
# checkout's HEAD into it and runs COMMAND there, in a mount namespace of its own with /proc, /sys, /dev and a
# tmpfs on /run. Needs root and debootstrap. Exit status: the command's.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'; exit 2; }
work=$(mkdir -p "$1" && cd "$1" && pwd)
shift
checkout=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=tests/beds/shared.sh
. "$checkout/tests/beds/shared.sh"
command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 2; }

if [ ! -e "$work/base/.complete" ]; then
    mirror=$(debian_mirror)
    debootstrap --variant=minbase --include=python3,git,ca-certificates "$(debian_suite)" "$work/base" "$mirror"
    touch "$work/base/.complete"
fi
root=$work/root
mountpoint -q "$root" && umount -R "$root"
rm -rf "$root"
cp -a "$work/base" "$root"
# What this machine's clients need to reach its mirrors, so that the new root reaches them too.
cp /etc/resolv.conf "$root/etc/resolv.conf" 2>/dev/null || true
cp -r /etc/ssl/certs/. "$root/etc/ssl/certs/"
cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"
cp /etc/pip.conf "$root/etc/pip.conf" 2>/dev/null || true
git clone --quiet "$checkout" "$root/root/kubenetmon"

exec unshare --mount --pid --fork --kill-child sh -ec '
    root=$1; shift
    mount --bind "$root" "$root"
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs tmpfs "$root/run"
    exec chroot "$root" env -i HOME=/root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        sh -c "cd /root/kubenetmon && exec \"\$@\"" sh "$@"
' sh "$root" "$@"
