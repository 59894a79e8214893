# Lets a run through only if somebody of ours signed it: Rego v1, with exec.
package spacelift

import rego.v1

# List the first path in SPACELIFT_LAUNCHER_POLICY_EXEC_ALLOWED.
verifier := [
	"/usr/local/bin/spacelift-launcher", "verify-run",
	"--keys", "/etc/spacelift-launcher/run-keys.json",
]

# What cannot be proven is denied: a rule that asked for a reason to deny would
# let through whatever gives none.
deny contains "nobody of ours signed this run" if not proven

deny contains answer.reason if {
	not proven
	answer.reason != ""
}

proven if {
	verified.status == 0
	answer.valid == true
}

# The command gets the input of this policy on its standard input.
verified := exec(verifier)

answer := json.unmarshal(verified.stdout)
