# What the credential service may do, and nothing beyond it. `sis vault bootstrap` fills in the mounts and writes this
# as the policy sis-credentials; its login gets no other policy, not even the default one.

# The values of credentials and the HMAC keys of pairing codes. Old versions are not restored, so there is no undelete.
path "{{kv_mount}}/data/credentials/*" {
  capabilities = ["create", "read", "update"]
}

path "{{kv_mount}}/metadata/credentials/*" {
  capabilities = ["read", "list", "delete"]
}

# Such a key is written once, read by its name, and removed.
path "{{kv_mount}}/data/pairings/*" {
  capabilities = ["create", "read"]
}

path "{{kv_mount}}/metadata/pairings/*" {
  capabilities = ["delete"]
}

# Certificates, in two roles, which say what may be in them.
path "{{pki_mount}}/sign/sis-agent" {
  capabilities = ["update"]
}

path "{{pki_mount}}/sign/sis-service" {
  capabilities = ["update"]
}

path "{{pki_mount}}/revoke" {
  capabilities       = ["update"]
  allowed_parameters = { "serial_number" = [] }
}

path "{{pki_mount}}/cert/ca_chain" {
  capabilities = ["read"]
}

# Its own token.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}
