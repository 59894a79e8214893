# The question the launcher asks a policy: compiled beside it, in a package of
# its own, so that no name the policy defines can collide with one of ours.
# What the policy does not define is absent from the answer.
package spacelift_launcher.prelude

import rego.v1

# Sets come out in no order at all, unless they are sorted here.
result["deny"] := sort(data.spacelift.deny) if is_set(data.spacelift.deny)

result["deny"] := data.spacelift.deny if not is_set(data.spacelift.deny)

result["sample"] := data.spacelift.sample
