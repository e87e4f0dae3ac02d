#!/usr/bin/env bash
# Certificates for TLS between Ray's nodes:
#   cluster/certificates.sh      on your machine, once: makes a certificate authority in ~/.ray/tls
#   certificates.sh node         on each node, started by the cluster file: makes the node's certificate in ~/.ray/node-tls
# `ray up` copies the authority to the nodes, each of which signs a certificate for its own addresses. So the authority's
# key is a secret of the cluster, like the token: whoever has it can make a certificate that the nodes accept.
set -euo pipefail
umask 077

authority=$HOME/.ray/tls node=$HOME/.ray/node-tls days=3650

fail() { echo "certificates.sh: error: $1" >&2; exit 2; }

make_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

# Both functions fill a temporary folder and then rename it: the folder is complete, or does not exist.
make_authority() {
  if [ -e "$authority" ]; then
    openssl x509 -in "$authority/ca.crt" -noout -checkend 0 > /dev/null ||
      fail "$authority cannot be used: stop the clusters that use it, delete it, and run this again"
    echo "There is an authority in $authority already."
    return
  fi
  mkdir -p "$HOME/.ray"
  made=$(mktemp -d "$authority.XXXXXX")
  make_key "$made/ca.key"
  printf '%s\n' '[req]' 'distinguished_name = name' '[name]' '[authority]' 'basicConstraints = critical, CA:true' \
    'keyUsage = critical, keyCertSign' 'subjectKeyIdentifier = hash' > "$made/settings"
  openssl req -x509 -new -sha256 -key "$made/ca.key" -days $days -subj /CN=vgg-ddp -config "$made/settings" \
    -extensions authority -out "$made/ca.crt"
  rm "$made/settings"
  mv "$made" "$authority"
  echo "Made an authority in $authority. Uncomment the lines marked TLS in the cluster file, then run ray up."
}

# A certificate that still fits is kept: processes that Ray starts later read it.
make_certificate() {
  local names=DNS:localhost,IP:127.0.0.1 address
  for address in $(hostname -I); do names+=,IP:$address; done
  if [ "$(cat "$node/names" 2> /dev/null)" = "$names" ] &&
    openssl verify -CAfile "$authority/ca.crt" "$node/node.crt" > /dev/null 2>&1; then
    return
  fi
  made=$(mktemp -d "$node.XXXXXX")
  make_key "$made/node.key"
  printf '%s\n' "subjectAltName = $names" 'basicConstraints = critical, CA:false' \
    'keyUsage = critical, digitalSignature' 'extendedKeyUsage = serverAuth, clientAuth' > "$made/settings"
  openssl req -new -sha256 -key "$made/node.key" -subj "/CN=$(hostname)" -out "$made/request"
  openssl x509 -req -sha256 -in "$made/request" -CA "$authority/ca.crt" -CAkey "$authority/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days $days -extfile "$made/settings" -out "$made/node.crt"
  rm "$made/settings" "$made/request"
  echo "$names" > "$made/names"
  rm -rf "$node"
  mv "$made" "$node"
}

command -v openssl > /dev/null || fail "there is no openssl command here: install the package openssl"
made=
trap 'rm -rf "$made"' EXIT
case $* in
  "") make_authority ;;
  node)
    [ -e "$authority/ca.key" ] || fail "there is no $authority on this node: run cluster/certificates.sh, then ray up"
    make_certificate
    # The cluster file removes the line again, by its first variable.
    variables='RAY_USE_TLS=1 RAY_TLS_CA_CERT=~/.ray/tls/ca.crt RAY_TLS_SERVER_CERT=~/.ray/node-tls/node.crt'
    variables+=' RAY_TLS_SERVER_KEY=~/.ray/node-tls/node.key'
    grep -qs RAY_USE_TLS ~/.bashrc || echo "export $variables" >> ~/.bashrc ;;
  *) fail "expected no argument, or node" ;;
esac
