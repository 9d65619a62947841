#!/usr/bin/env bash
# Build the Dockerfile where no container engine runs and no registry is reached.
#
#   tests/beds/build-image.sh DIRECTORY [ARCHITECTURE]
#
# buildah does each step in a chroot, on a base made by debootstrap under the base's own name. The image's root
# file system is laid in DIRECTORY/root, its configuration in DIRECTORY/config.json, the base's megabytes in
# DIRECTORY/base-size. Needs root, buildah and debootstrap; the base is kept in
# ${XDG_CACHE_HOME:-~/.cache}/kubenetmon. For another ARCHITECTURE (arm64) the kernel must be told how to run its
# programs wherever they are: qemu-user-static, in binfmt_misc with the flag F.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mkdir -p "$1" && cd "$1" && pwd)
architecture=${2:-$(dpkg --print-architecture)}
base=${XDG_CACHE_HOME:-$HOME/.cache}/kubenetmon/debian-$(. /etc/os-release && echo "$VERSION_CODENAME")
[ "$architecture" = "$(dpkg --print-architecture)" ] || base=$base-$architecture
name=$(sed -n 's/^ARG DEBIAN=//p' "$checkout/Dockerfile")
"$checkout/tests/beds/debian-base.sh" "$base" "$architecture"

export BUILDAH_ISOLATION=chroot
run() { buildah --storage-driver "$driver" --root "$work/storage" --runroot "$work/run" "$@"; }
driver=overlay # where the file system bears it; else each step copies everything
run info >/dev/null 2>&1 || { driver=vfs; rm -rf "$work/storage" "$work/run"; }
container=$(run from --arch "$architecture" scratch)
cp -a "$base/." "$(run mount "$container")/"
du -sm "$base" | cut -f1 >"$work/base-size"
run commit --quiet --rm "$container" "$name" >/dev/null
mkdir -p "$work/context"
git -C "$checkout" ls-files -z --cached --others --exclude-standard | (cd "$checkout" && xargs -0 cp --parents -t "$work/context")
run build --quiet --arch "$architecture" --pull=never --layers=false --build-arg REVISION="$(git -C "$checkout" rev-parse HEAD)" \
    --tag kubenetmon:test "$work/context" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
run inspect --type image kubenetmon:test >"$work/config.json"
container=$(run from --arch "$architecture" --pull=never kubenetmon:test)
cp -a "$(run mount "$container")" "$work/root"
run rm --all >/dev/null
umount "$work/storage/$driver" 2>/dev/null || true
rm -rf "$work/storage" "$work/run" "$work/context"
