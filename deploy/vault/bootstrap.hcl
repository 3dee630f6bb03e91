# What `sis vault bootstrap` needs where it does not have a root token: for the person who prepares Vault. Replace
# {{kv_mount}}, {{pki_mount}} and {{auth_mount}} (sis-kv, sis-pki and approle or kubernetes unless you choose others).

path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/{{kv_mount}}" {
  capabilities = ["create", "update"]
}

path "{{kv_mount}}/config" {
  capabilities = ["read"]
}

path "sys/mounts/{{pki_mount}}" {
  capabilities = ["create", "update"]
}

path "{{pki_mount}}/issuers" {
  capabilities = ["list"]
}

path "{{pki_mount}}/root/generate/internal" {
  capabilities = ["create", "update"]
}

path "{{pki_mount}}/roles/sis-agent" {
  capabilities = ["create", "read", "update"]
}

path "{{pki_mount}}/roles/sis-service" {
  capabilities = ["create", "read", "update"]
}

path "{{pki_mount}}/config/auto-tidy" {
  capabilities = ["create", "read", "update"]
}

path "{{pki_mount}}/cert/ca_chain" {
  capabilities = ["read"]
}

path "sys/policies/acl/sis-credentials" {
  capabilities = ["create", "read", "update"]
}

path "sys/auth" {
  capabilities = ["read"]
}

path "sys/auth/{{auth_mount}}" {
  capabilities = ["create", "update", "sudo"]
}

path "auth/{{auth_mount}}/config" {
  capabilities = ["create", "read", "update"]
}

path "auth/{{auth_mount}}/role/sis-credentials" {
  capabilities = ["create", "read", "update"]
}

path "auth/{{auth_mount}}/role/sis-credentials/role-id" {
  capabilities = ["read"]
}

path "auth/{{auth_mount}}/role/sis-credentials/secret-id" {
  capabilities = ["create", "update"]
}

path "auth/{{auth_mount}}/role/sis-credentials/secret-id/lookup" {
  capabilities = ["create", "update"]
}

path "auth/token/lookup-self" {
  capabilities = ["read"]
}
