import pytest

from hypothesis import given
from hypothesis import strategies as st

from launcher.vendors import workflow
from launcher.vendors.templates import TemplateInvalid, render
from launcher.vendors.terraform import BUILT_IN


VALUES = {
    "Yes": True,
    "No": False,
    "Name": "a {{ .No }} b",
    "Empty": "",
    "List": ("one", "two"),
    "None": (),
}


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ("", ""),
        ("plain } text {", "plain } text {"),
        ("{{ .Name }}|{{.Name}}", "a {{ .No }} b|a {{ .No }} b"),
        ("{{ .Yes }} {{ .No }}", "true false"),
        ("{{ if .Yes }}a{{ else }}b{{ end }}", "a"),
        ("{{ if .No }}a{{ else }}b{{ end }}", "b"),
        ("{{ if not .No }}a{{ end }}{{ if not .Yes }}b{{ end }}", "a"),
        ("{{ if .Empty }}a{{ else if .None }}b{{ else if .List }}c{{ end }}d", "cd"),
        ("{{ if .Empty }}a{{ else if .None }}b{{ else }}c{{ end }}d", "cd"),
        ("{{ range .List }}-t={{ . }} {{ end }}", "-t=one -t=two "),
        ("{{ range .None }}x{{ else }}nothing{{ end }}", "nothing"),
        ("{{ range .List }}{{ if .Yes }}{{ . }}{{ end }}{{ end }}", "onetwo"),
        ("a {{- if .Yes -}} b {{- end }} c", "ab c"),
        ("a\n{{- range .List }} {{ . -}} \n{{ end -}} \n z", "a one twoz"),
    ],
)
def test_rendering(template, made):
    """[capability 152] Fields, conditions and loops mean what they mean in Go's templates."""
    assert made == render(template, VALUES)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ printf .Name }}", "uses 'printf'"),
        ("{{ .Name | quote }}", "uses '|'"),
        ("{{ with .Name }}{{ end }}", "uses 'with'"),
        ("{{ if and .Yes .No }}{{ end }}", "uses 'and'"),
        ("{{ range $i, $x := .List }}{{ end }}", "uses '$i,'"),
        ("{{ $x }}", "uses '$x'"),
        ('{{ "text" }}', "uses '\"text\"'"),
        ("{{/* remark */}}", "uses '/*'"),
        ("{{ define }}", "uses 'define'"),
        ("{{ call .Name }}", "uses 'call'"),
        ("{{ .Name.Inner }}", "uses"),
        ("{{ .__class__ }}", "uses"),
        ("{{ . }}", "uses '.'"),
        ("{{ }}", "uses ''"),
        ("{{ .Nothing }}", "uses .Nothing, which is not there; there are: .Yes"),
        ("{{ .List }}", "shows .List, which is a list"),
        ("{{ range .Name }}{{ end }}", "ranges over .Name, which is no list"),
        ("{{ if .Yes }}", "has no {{ end }} for its 'if'"),
        ("{{ if .Yes }}{{ else }}{{ else }}{{ end }}", "belongs to nothing"),
        ("{{ end }}", "has an 'end' that belongs to nothing"),
        ("{{ else }}", "has an 'else' that belongs to nothing"),
        ("{{ .Name", "has a {{ without its }}"),
        ("{{ if .Yes }}" * 9 + "{{ end }}" * 9, "more than 8 levels deep"),
        ("x" * 20_000, "has more than 16384 characters"),
    ],
)
def test_what_is_not_known_is_refused_by_name(template, sentence):
    """[capability 152] Whatever else a template uses is named, and nothing is rendered."""
    with pytest.raises(TemplateInvalid) as caught:
        render(template, VALUES)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 300


def test_what_is_made_is_bounded():
    """A template that repeats itself makes no more than a command may have."""
    values = {"List": ("x" * 1000,) * 1000}
    with pytest.raises(TemplateInvalid, match="makes more than"):
        render("{{ range .List }}{{ . }}{{ . }}{{ end }}", values)


@given(st.text(alphabet="{}.-ifelsndrangot XYesNo\n", max_size=80))
def test_any_text_is_rendered_or_refused(text):
    """No template ends in anything but a text or a refusal."""
    try:
        assert isinstance(render(text, VALUES), str)
    except TemplateInvalid:
        pass


def test_the_built_in_table_is_a_workflow():
    """[capability 151] The commands of Terraform are the documented ones, as templates."""
    assert workflow.PARAMETERS.keys() == BUILT_IN.keys()
    values = {
        "Lock": True,
        "Refresh": False,
        "PlanFileName": "spacelift.plan",
        "Targets": ("a", "b"),
        "WorkspaceName": "w",
    }
    made = {key: render(text, values) for key, text in BUILT_IN.items()}
    assert "TOOL init -input=false" == made["init"]
    assert (
        "TOOL plan -input=false -lock=true -refresh=false -out=spacelift.plan"
        " -target=a -target=b" == made["plan"]
    )
    assert "TOOL show -json spacelift.plan" == made["showPlan"]
    assert "TOOL apply -auto-approve -input=false spacelift.plan" == made["apply"]
    assert "TOOL destroy -auto-approve -input=false" == made["destroy"]
