#!/usr/bin/env bash
# What an arm64 machine of ours is made of, before this checkout: made once, where no arm64 program can run.
#
#   tests/beds/arm64-base.sh DIRECTORY [embedded]
#
# DIRECTORY receives `kernel` (Debian's for clouds), `root` (to compile against: Debian's packages unpacked, with the
# Python packages of the lock files and pytest) and `root.cpio` (what of it is booted); or, with `embedded`, beside
# them `embedded.cpio`, the embedded ClickHouse. The packages' own scripts do not run: what they would have done, and
# is used, is done here. Needs python3 with pip, binutils for arm64, cpio and kmod; no root, no binfmt_misc.
set -euo pipefail

base=$1
checkout=$(cd "$(dirname "$0")/../.." && pwd)
locks=$checkout/deploy/locks
# shellcheck source=tests/beds/shared.sh
. "$checkout/tests/beds/shared.sh"

say() { printf '[arm64 %4ds] %s\n' "$SECONDS" "$*"; }

wheels() { # DIRECTORY ARGUMENTS…: install for aarch64 and Debian's Python, as locked
    local directory=$1
    shift
    python3 -m pip install --quiet --disable-pip-version-check --require-hashes --target "$directory" \
        --python-version 3.11 --implementation cp --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 "$@" >"$base/log" 2>&1 ||
        { tail -n 30 "$base/log" >&2; return 1; }
}

root=$base/root
site=$root/usr/local/lib/python3.11/dist-packages

if [ "${2:-}" = embedded ]; then
    say "installing the embedded ClickHouse (160 MB)"
    wheels "$base/embedded/${site#"$root/"}" --only-binary :all: -c "$locks/embedded.lock" chdb-core
    archive "$base/embedded" >"$base/embedded.new"
    mv "$base/embedded.new" "$base/embedded.cpio"
    rm -rf "$base/embedded"
    exit
fi

say "fetching Debian's packages for arm64"
mkdir -p "$root/usr" "$base/debs"
scratch_apt "$base/apt" deb arm64
kernel=$(apt-cache "${apt_options[@]}" depends linux-image-cloud-arm64 | sed -n 's/^ *Depends: //p' | head -n 1)
apt-get "${apt_options[@]}" install -y -qq --download-only \
    bash busybox-static conntrack coreutils dash findutils grep iproute2 iptables kmod libasan8 libc6-dev \
    libmnl-dev libnetfilter-conntrack-dev libubsan1 make nftables procps python3-dev sed util-linux >/dev/null
# By itself: what it depends on makes a disk's boot loader and first root.
(cd "$base/debs" && apt-get "${apt_options[@]}" download -qq "$kernel")

say "laying out the root"
for directory in bin sbin lib; do
    mkdir -p "$root/usr/$directory"
    ln -s "usr/$directory" "$root/$directory"
done
for package in "$base"/apt/cache/archives/*.deb "$base"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar --extract --no-same-owner --keep-directory-symlink --directory "$root"
done
mv "$root"/boot/vmlinuz-* "$base/kernel"
depmod --basedir "$root" "${kernel#linux-image-}"
# What the packages' own scripts would have done, and is used.
for package in iptables ip6tables; do
    for directory in '' -save -restore; do ln -sf xtables-nft-multi "$root/usr/sbin/$package$directory"; done
done
ln -s python3 "$root/usr/bin/python"
echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
echo '127.0.0.1 localhost arm64' >"$root/etc/hosts"
printf 'passwd: files\nhosts: files\n' >"$root/etc/nsswitch.conf"

say "installing Python packages for aarch64 as locked"
wheels "$site" --only-binary :all: --no-binary quantile-python --no-deps -r "$locks/runtime.lock"
wheels "$base/tests" --only-binary :all: -c "$locks/development.lock" \
    hypothesis pytest pytest-asyncio pytest-timeout trustme grpcio
cp -an "$base/tests/." "$site/"
find "$site" -name '*.so' ! -path '*.libs/*' -exec aarch64-linux-gnu-strip --strip-unneeded {} +
# Where this machine has the same Python, that it compiles here.
if python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    python3 -m compileall -q -j 2 -s "$root" -p / "$root/usr/lib/python3.11" "$root/usr/lib/python3" >/dev/null || true
fi
archive "$root" \( -path ./boot -o -path ./usr/include -o -path './usr/lib/linux-image*' -o -path '*/perl*' \
    -o -path '*/kernel/fs' -o -path '*/kernel/sound' -o -path '*/kernel/drivers/[!n]*' \
    -o -path './usr/share/[!b]*' -o -path '*/config-3.11-*' -o -path '*/dist-packages/*/tests' \) -prune -o \
    ! -name '*.[acho]' ! -name '*.py[xi]' ! -name 'libperl*' >"$base/root.cpio"
rm -rf "$base/apt" "$base/debs" "$base/tests"
