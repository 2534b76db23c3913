# shellcheck shell=bash
# What a bare Debian or Ubuntu machine lacks, and how it is installed. Sourced by deploy/up and tests/run.
#
# A need is a name below with a probe and a package. The probe decides, so a tool that came some other way
# counts; apt is asked only for what is missing, and not at all when nothing is.

# Succeeds when the machine has the need already.
have() {
    case $1 in
        cc) command -v cc >/dev/null ;;
        c++) command -v c++ >/dev/null ;;
        openssl) pkg-config --exists openssl 2>/dev/null ;;
        zlib) pkg-config --exists zlib 2>/dev/null ;;
        python-venv) /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null ;;
        postgres) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null ;;
        certificates) [[ -s /etc/ssl/certs/ca-certificates.crt ]] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

# The package that brings the need.
package_of() {
    case $1 in
        cc) echo gcc libc6-dev ;;
        c++) echo g++ ;;
        openssl) echo libssl-dev ;;
        zlib) echo zlib1g-dev ;;
        java) echo default-jre-headless ;;
        mvn) echo maven ;;
        python-venv) echo python3 python3-venv ;;
        certificates) echo ca-certificates ;;
        postgres) echo postgresql ;;
        flock | setsid | setpriv | unshare) echo util-linux ;;
        ip) echo iproute2 ;;
        *) echo "$1" ;;
    esac
}

# What every build of the workspace needs beside Rust: librdkafka and ring compile C, and librdkafka links the
# system's OpenSSL and zlib.
# shellcheck disable=SC2034 # for whoever sources this
build_needs=(cc c++ make pkg-config openssl zlib certificates)

# Installs whatever of the named needs is missing, or says what to install and fails.
install_needs() {
    local need packages=() as_root=()
    for need in "$@"; do
        # shellcheck disable=SC2207 # package names have no blanks
        have "$need" || packages+=($(package_of "$need"))
    done
    if ((${#packages[@]} == 0)); then return; fi
    if ! command -v apt-get >/dev/null; then
        echo "missing on this machine: ${packages[*]} (Debian's names). There is no apt-get here; please install them." >&2
        return 1
    fi
    if ((EUID != 0)); then
        if ! command -v sudo >/dev/null; then
            echo "missing on this machine: ${packages[*]}. Neither root nor sudo here; as root, run:" >&2
            echo "    apt-get update && apt-get install ${packages[*]}" >&2
            return 1
        fi
        as_root=(sudo)
    fi
    echo "installing ${packages[*]}" >&2
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
    for need in "$@"; do
        have "$need" || {
            echo "\`$need\` is still missing after installing ${packages[*]}" >&2
            return 1
        }
    done
}

# Finds cargo, also where rustup puts it without touching the PATH.
require_rust() {
    if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    command -v cargo >/dev/null || {
        echo "no cargo on this machine: install the Rust toolchain (rustup.rs or your distribution's rustup), then run this again" >&2
        return 1
    }
}
