# shellcheck shell=bash
# For scripts here to source: Debian's packages, without touching how this machine's apt is configured; first roots.

debian_mirror() { # the one that this machine's apt uses
    local mirror
    mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 /debian$ || true)
    [ -n "$mirror" ] || { echo "apt knows no Debian mirror: add one to its sources" >&2; return 1; }
    echo "$mirror"
}

debian_suite() { # this machine's
    (. /etc/os-release && echo "$VERSION_CODENAME")
}

scratch_apt() { # DIRECTORY TYPE ARCHITECTURE: sets `apt_options`; of TYPE (deb, deb-src), with nothing installed
    local directory=$1
    mkdir -p "$directory/lists/partial" "$directory/cache/archives/partial"
    : >"$directory/status"
    echo "$2 $(debian_mirror) $(debian_suite) main" >"$directory/sources.list"
    # shellcheck disable=SC2034  # for who sources this
    apt_options=(-o "Dir::Etc::SourceList=$directory/sources.list" -o Dir::Etc::SourceParts=/dev/null
                 -o "Dir::State=$directory" -o "Dir::State::Lists=$directory/lists" -o "Dir::State::status=$directory/status"
                 -o "Dir::Cache=$directory/cache" -o "APT::Architecture=$3" -o "APT::Architectures::=$3"
                 -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=true)
    apt-get "${apt_options[@]}" update -qq
}

archive() { # DIRECTORY [FIND'S EXPRESSION]: what a kernel unpacks as its first root, everything root's
    local directory=$1
    shift
    (cd "$directory" && find . "$@" -print0 | LC_ALL=C sort -z | cpio --null --create --quiet --format=newc --owner=0:0)
}
