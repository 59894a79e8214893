# Lets a run through only if somebody of ours signed it: Rego v1, without a command.
package spacelift

import rego.v1

# The public keys, as `sign.py keys` writes them.
keys := `{"keys": []}`

algorithm := "EdDSA"

# Seconds between signing and triggering, and between signing and expiry.
longest_wait := 300

longest_validity := 86400

# What cannot be proven is denied: a rule that asked for a reason to deny would
# let through whatever gives none.
deny contains "nobody of ours signed this run" if not proven

proven if {
	signed.stack == input.static_run_environment.stack_slug
	signed.commit == input.run.commit.hash
	signed.run_type == input.run.type
	signed.phase == input.phase
	signed.hooks == hooks
	object.get(signed, "image", input.docker_image_digest) == input.docker_image_digest
	object.get(signed, "account", input.static_run_environment.account_name) == input.static_run_environment.account_name
	object.get(signed, "command", "") == input.run.command
	is_string(signed.jti)
	signed.exp - signed.iat <= longest_validity
	for_this_run

	# A claim that is not looked at above might have been meant to restrict.
	object.keys(signed) - known == set()
}

# A trigger's signature cannot name the run, which has no name yet; so it is
# good for runs that were created when it was made.
for_this_run if {
	input.phase != "apply"
	object.get(signed, "run", input.run.id) == input.run.id
	abs((input.run.created_at / 1000000000) - signed.iat) <= longest_wait
}

for_this_run if {
	input.phase == "apply"
	signed.run == input.run.id
}

# This also looks at the time of expiry, if there is one; `proven` wants one.
signed := payload if {
	[valid, header, payload] := io.jwt.decode_verify(token, {"cert": keys, "alg": algorithm})
	valid == true
	header.typ == "spacelift-run+jwt"
}

metadata := input.run.user_provided_metadata

token := metadata[0] if input.phase != "apply"

token := metadata[count(metadata) - 1] if {
	input.phase == "apply"
	count(metadata) > 1
}

hooks := concat(":", ["sha256", crypto.sha256(concat("\n", lines))]) if {
	every name in hook_lists { name in object.keys(input.static_run_environment) }
}

lines := [line |
	some name in hook_lists
	some index, command in input.static_run_environment[name]
	line := concat(" ", [name, format_int(index, 10), crypto.sha256(command)])
]

hook_lists := [
	"after_apply", "after_destroy", "after_init", "after_perform", "after_plan", "after_run",
	"before_apply", "before_destroy", "before_init", "before_perform", "before_plan",
]

known := {
	"account", "command", "commit", "exp", "hooks", "iat", "image",
	"iss", "jti", "phase", "run", "run_type", "stack",
}
