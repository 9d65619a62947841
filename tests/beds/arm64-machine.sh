#!/usr/bin/env bash
# Run a command on a whole arm64 machine: a real arm64 Linux kernel under QEMU, on any Debian machine.
#
#   tests/beds/arm64-machine.sh [--embedded] COMMAND…
#
# The machine is Debian's kernel for clouds and a root of Debian's packages, with the Python packages of the lock
# files (wheels for aarch64) and pytest; --embedded adds the embedded ClickHouse. This checkout lies there as
# /root/kubenetmon, where COMMAND runs as root, with the shim compiled; the C test programs, with their sanitizers,
# are in /root/native, where `make -C csrc BUILD=/root/native test` finds nothing left to compile. All is in memory:
# nothing survives, there is no disk and no network but its own. What COMMAND prints is printed here as it comes.
# Exit status: the command's; 125 when the machine ended without saying.
#
# Compiled here, by Debian's cross compiler (the same GCC), since emulated it takes twenty times as long. No arm64
# program runs on this machine outside the emulated one: neither binfmt_misc nor root is needed, but that missing
# packages are installed. What depends on the lock files alone is kept in ${XDG_CACHE_HOME:-~/.cache}/kubenetmon.
#
# KUBENETMON_ARM64_MEMORY: the machine's megabytes. KUBENETMON_ARM64_LIMIT: after how many seconds it is ended.
set -euo pipefail

embedded=
[ "${1:-}" = --embedded ] && { embedded=yes; shift; }
[ $# -ge 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | sed '$d'; exit 2; }
checkout=$(cd "$(dirname "$0")/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kubenetmon/arm64-machine
memory=${KUBENETMON_ARM64_MEMORY:-$([ -n "$embedded" ] && echo 5120 || echo 2048)}
limit=${KUBENETMON_ARM64_LIMIT:-7200}
# shellcheck source=tests/beds/shared.sh
. "$checkout/tests/beds/shared.sh"

say() { printf '[arm64 %4ds] %s\n' "$SECONDS" "$*"; }

missing=
for package in qemu-system-arm gcc-aarch64-linux-gnu cpio kmod make; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
    say "installing$missing"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# One directory for each state of what it is made of; older ones go.
key=$(cat "$checkout"/deploy/locks/{runtime,embedded,development}.lock "$checkout"/tests/beds/{arm64-base,shared}.sh | sha256sum | cut -c1-16)
base=$cache/$key
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [ ! -e "$base/.complete" ]; then
    find "$cache" -mindepth 1 -maxdepth 1 -type d -exec rm -rf {} +
    "$checkout/tests/beds/arm64-base.sh" "$base"
    touch "$base/.complete"
fi
[ -z "$embedded" ] || [ -e "$base/embedded.cpio" ] || "$checkout/tests/beds/arm64-base.sh" "$base" embedded

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say "compiling the shim for arm64"
compile="aarch64-linux-gnu-gcc --sysroot=$base/root"
mkdir -p "$scratch/root/kubenetmon" "$scratch/root/native" "$scratch/build"
(cd "$checkout" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$scratch/root/kubenetmon" --)
# The extension modules keep to Python's stable interface, so that any Python may lead their compilation.
(cd "$scratch/root/kubenetmon" && env CC="$compile" LDSHARED="$compile -shared" CFLAGS="-I$base/root/usr/include/python3.11" \
    python3 setup.py --quiet build_ext --inplace --build-temp "$scratch/build" >"$scratch/log" 2>&1) ||
    { tail -n 30 "$scratch/log" >&2; exit 1; }
if python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then # the machine's too
    python3 -m compileall -q -s "$scratch" -p / "$scratch/root/kubenetmon/kubenetmon"
fi
native=$base/native-$(cat "$checkout"/csrc/Makefile "$checkout"/csrc/*.[ch] "$checkout"/csrc/*/*.[ch] | sha256sum | cut -c1-16)
if [ ! -e "$native/.complete" ]; then
    say "compiling the C tests for arm64, with sanitizers"
    rm -rf "$base"/native-*
    mkdir "$native"
    programs=("$checkout"/csrc/tests/test_*.c)
    programs=("${programs[@]##*/}")
    programs=("${programs[@]/#/$native/}")
    make --silent --jobs 2 -C "$checkout/csrc" BUILD="$native" GCC="$compile" CLANG=: \
        WATCHDOG="-DWATCHDOG_PROGRAM='\"/root/native/watchdog\"'" "${programs[@]%.c}"
    touch "$native/.complete"
fi
# Newer than the sources, whenever those were checked out.
cp "$native"/* "$scratch/root/native/"

cat >"$scratch/init" <<'END'
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mkdir -p /dev/shm /dev/pts
/bin/busybox mount -t devpts devpts /dev/pts
/bin/busybox mount -t tmpfs tmpfs /dev/shm
/bin/busybox mount -t tmpfs tmpfs /run
/bin/busybox ln -s /proc/self/fd /dev/fd
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CI=true
export PYTHONPATH=/root/kubenetmon PYTHONUNBUFFERED=1 TERM=dumb
hostname arm64
ip link set lo up
cd /root/kubenetmon
set -o pipefail
setsid /bin/busybox sh /root/command </dev/null 2>&1 | cat # not a terminal
echo "arm64-machine: status $?"
/bin/busybox poweroff -f
END
chmod +x "$scratch/init"
mkdir -p "$scratch/usr/local/bin"
printf '#!/bin/sh\nexec python3 -m kubenetmon "$@"\n' >"$scratch/usr/local/bin/kubenetmon"
chmod +x "$scratch/usr/local/bin/kubenetmon"
{
    echo "date --utc --set=@$(date +%s) >/dev/null"
    printf '%q ' exec "$@"
} >"$scratch/root/command"
archive "$scratch" \( -path ./build -o -path ./log \) -prune -o >"$scratch/build/checkout.cpio"
cat "$base/root.cpio" ${embedded:+"$base/embedded.cpio"} "$scratch/build/checkout.cpio" >"$scratch/build/initrd"
flock --unlock 9

say "booting $(basename "$base/root"/lib/modules/*) with $memory MB"
timeout --foreground "$limit" qemu-system-aarch64 -machine virt -cpu neoverse-n1 -accel tcg,thread=multi -smp 2 -m "$memory" \
    -kernel "$base/kernel" -initrd "$scratch/build/initrd" -append "console=ttyAMA0 quiet panic=-1" \
    -nodefaults -no-reboot -display none -serial stdio </dev/null 2>&1 | sed -u 's/\r//g' | tee "$scratch/log" || true
status=$(sed -n 's/^arm64-machine: status //p' "$scratch/log" | tail -n 1)
[ -n "$status" ] || { say "the machine ended without saying how the command ended" >&2; exit 125; }
say "ended"
exit "$status"
