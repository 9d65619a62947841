#!/usr/bin/env bash
# Build Kubernetes' own programs once from Debian's source package and keep them in a cache outside the checkout.
#
#   tests/beds/build-kubernetes.sh [DIRECTORY]
#   tests/beds/build-kubernetes.sh --wait        only until a build that is at work has ended
#
# DIRECTORY (default ${XDG_CACHE_HOME:-~/.cache}/kubenetmon/kubernetes-1.20.2) receives kube-apiserver, for the
# tests that need an API, and kubelet, kube-proxy, kube-controller-manager and kube-scheduler, for those that
# need nodes. Nothing is done when they are there already. About 12 minutes on two cores that had other work,
# and some gigabytes of scratch space. Debian stopped shipping the binaries, but still ships the source, so these
# are the newest that a machine with nothing but a Debian mirror can have.
set -euo pipefail

version=1.20.2
programs=(kube-apiserver kubelet kube-proxy kube-controller-manager kube-scheduler)
# shellcheck source=tests/beds/shared.sh
. "$(dirname "$0")/shared.sh"
target=${XDG_CACHE_HOME:-$HOME/.cache}/kubenetmon/kubernetes-$version
if [ "${1:-}" = --wait ]; then
    [ ! -e "$target/.lock" ] || flock "$target/.lock" true
    exit 0
fi
target=${1:-$target}
complete() {
    local program
    for program in "${programs[@]}"; do [ -x "$target/$program" ] || return 1; done
}
complete && exit 0
mkdir -p "$target"
exec 9>"$target/.lock"
flock 9
complete && exit 0

say() { printf '[kubernetes %s] %s\n' "$version" "$*"; }
scratch=$(mktemp -d "$target/build.XXXXXX")
trap 'chmod -R u+w "$scratch" 2>/dev/null; rm -rf "$scratch"' EXIT

say "installing build tools (golang-go, rsync, jq, dpkg-dev, make)"
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends golang-go rsync jq dpkg-dev make >/dev/null

say "fetching the source package"
mkdir -p "$scratch/source"
scratch_apt "$scratch/apt" deb-src "$(dpkg --print-architecture)"
(cd "$scratch/source" && apt-get "${apt_options[@]}" source -qq --only-source kubernetes >/dev/null)
tree=$(find "$scratch/source" -maxdepth 1 -type d -name 'kubernetes-*' | head -n 1)

say "compiling (about 12 minutes on two cores)"
cat >"$scratch/version" <<END
KUBE_GIT_COMMIT='debian'
KUBE_GIT_TREE_STATE='clean'
KUBE_GIT_VERSION='v$version'
KUBE_GIT_MAJOR='1'
KUBE_GIT_MINOR='20'
END
# Without the clouds' and Docker's own code: nothing here uses it, and it takes minutes.
(cd "$tree" && env HOME="$scratch" GOCACHE="$scratch/gocache" GOPATH="$scratch/gopath" GO111MODULE=on \
    GOFLAGS='-mod=vendor -tags=providerless,dockerless' KUBE_GIT_VERSION_FILE="$scratch/version" \
    make WHAT="${programs[*]/#/cmd/}" >"$scratch/log" 2>&1) || {
    tail -n 30 "$scratch/log" >&2
    say "the build failed" >&2
    exit 1
}
for program in "${programs[@]}"; do
    install -m 0755 "$(find "$tree/_output" -type f -name "$program" | head -n 1)" "$target/$program.new"
    mv "$target/$program.new" "$target/$program"
done
say "done: $target"
